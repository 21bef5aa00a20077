#!/usr/bin/env python3
"""Sums up runs of CTest: what ran where, what failed, and why each skipped test was skipped.

Takes the results as CTest leaves them: NAME.xml (--output-junit) and NAME.json (--show-only=json-v1, for the
labels). Exits with 1 where a run has no results, nothing ran at all, or a test was skipped without a reason.
"""

import argparse
import json
import re
import sys
import xml.etree.ElementTree
from pathlib import Path

# Tiers in the order of the summary; a test belongs to the first of whose labels it has one.
TIERS = (("linux", {"linux"}), ("integration", {"integration", "kvm"}), ("release", {"release"}),
         ("house", {"house"}), ("unit", {"unit"}))


def tier_of(labels):
    return next((name for name, wanted in TIERS if wanted & labels), "other")


def skip_reason(output):
    """The reason a test gives: a line `SKIP: why` of a script, or what GTEST_SKIP() was given."""
    found = re.search(r"^SKIP: *(\S.*)$", output, re.M) or re.search(r": Skipped\n(\S.*)$", output, re.M)
    return found[1].strip() if found else None


def read_run(results):
    """Yields (name, tier, state, reason) for every test of the run; state is passed, failed or skipped."""
    labels = {}
    listed = json.loads(Path(f"{results}.json").read_text(encoding="utf-8", errors="replace"))
    for test in listed["tests"]:
        for item in test.get("properties", []):
            if item["name"] == "LABELS":
                labels[test["name"]] = set(item["value"])
    for case in xml.etree.ElementTree.parse(f"{results}.xml").getroot().iter("testcase"):
        name = case.get("name")
        tier = tier_of(labels.get(name, set()))
        output = case.findtext("system-out") or ""
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.get("status") == "fail":
            yield name, tier, "failed", None
        elif skipped is not None or case.get("status") in ("notrun", "disabled"):
            why_not_run = skipped.get("message") if skipped is not None else "disabled"
            own_mark = "SKIP_" in (why_not_run or "")
            yield name, tier, "skipped", skip_reason(output) or (None if own_mark else why_not_run)
        else:
            yield name, tier, "passed", None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host-kvm", default="", help="what the host's /dev/kvm is, in words")
    parser.add_argument("--linux-tier", default="", help="where Linux guests run, in words")
    parser.add_argument("results", nargs="+", help="results of one run, without the suffix")
    options = parser.parse_args()

    where = {"linux": options.linux_tier, "integration": options.host_kvm, "release": "the program that ships",
             "house": "no guest", "unit": "no guest"}
    counts, skipped, failed, broken = {}, [], [], []
    for results in options.results:
        try:
            for name, tier, state, reason in read_run(results):
                counts.setdefault(tier, dict.fromkeys(("passed", "failed", "skipped"), 0))[state] += 1
                if state == "failed":
                    failed.append(name)
                elif state == "skipped":
                    skipped.append((name, reason))
        except (OSError, ValueError, xml.etree.ElementTree.ParseError) as problem:
            broken.append(f"no results in {results}: {problem}")

    print("\nSummary of the tests")
    for tier in [name for name, _ in reversed(TIERS)] + ["other"]:
        if tier in counts:
            numbers = counts[tier]
            place = f"   ({where[tier]})" if where.get(tier) else ""
            print(f"  {tier:<12}{numbers['passed']:5} passed {numbers['failed']:4} failed "
                  f"{numbers['skipped']:4} skipped{place}")
    for title, lines in (("Failed", failed), ("Broken", broken),
                         ("Skipped", [f"{name}: {reason or 'GIVES NO REASON, which is a failure'}"
                                      for name, reason in skipped])):
        if lines:
            print(f"{title}:")
            print("\n".join(f"  {line}" for line in lines))
    sys.stdout.flush()
    nothing_passed = not any(numbers["passed"] for numbers in counts.values())
    if nothing_passed:
        print("  nothing passed: is the pattern right?")
    unexplained = any(reason is None for _, reason in skipped)
    return 1 if failed or broken or unexplained or nothing_passed else 0


if __name__ == "__main__":
    sys.exit(main())
