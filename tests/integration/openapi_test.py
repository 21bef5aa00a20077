#!/usr/bin/python3
"""Holds resources/openapi.yaml and the running control API against each other, both ways.

  openapi_test.py --mayfly BINARY --guests FOLDER --calls PROGRAM [unittest's own arguments]

PROGRAM prints the router's own list of calls. Only the class Started needs a usable /dev/kvm.
"""

import argparse
import copy
import itertools
import json
import os
import re
import sys
from pathlib import Path

import bare_guests
from api_test import ApiCase
from bare_guests import Connection, guest, output_of

import yaml

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")
MARKS = {"x-mayfly-own", "x-mayfly-when", "x-mayfly-refused", "x-mayfly-only-with"}
STATES = ("before start", "after start", "always")

# What they need is there after a snapshot only: snapshot_test.py makes these calls.
NEED_A_SNAPSHOT = ("/snapshot/load", "/snapshot/working-set")

CALLS = ""


class Description:
    """The description, with every $ref and allOf of its schemas resolved."""

    def __init__(self):
        with open(ROOT / "resources/openapi.yaml", encoding="utf-8") as file:
            self.document = yaml.safe_load(file)
        self.operations = {}
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if method != "parameters":
                    self.operations[f"{method.upper()} {path}"] = operation

    def resolve(self, node):
        while "$ref" in node:
            target = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = target
        if "allOf" in node:
            rest = {key: value for key, value in node.items() if key != "allOf"}
            node = {**self.resolve(node["allOf"][0]), **rest}
        return node

    def body(self, operation):
        """(schema, {name: example}) of the request, or (None, {})."""
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            return None, {}
        return self.resolve(content["schema"]), {name: entry["value"] for name, entry in content.get("examples", {}).items()}

    def answer(self, operation):
        content = operation["responses"]["200"]["content"]
        return self.resolve(content["application/json"]["schema"])

    def faults(self, value, node, where="it"):
        """What of `value` is not as the schema `node` says, one text each."""
        node = self.resolve(node)
        if value is None and node.get("nullable"):
            return
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
        kind = node.get("type")
        if kind and (not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool))):
            yield f"{where} is no {kind}: {value!r}"
            return
        if "enum" in node and value not in node["enum"]:
            yield f"{where} is none of {node['enum']}: {value!r}"
        if kind == "integer" and not node.get("minimum", value) <= value <= node.get("maximum", value):
            yield f"{where} is out of range: {value}"
        if kind == "string":
            if not node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value)):
                yield f"{where} is too short or too long: {value!r}"
            if "pattern" in node and not re.search(node["pattern"], value):
                yield f"{where} is not {node['pattern']}: {value!r}"
        if kind == "array":
            if not node.get("minItems", 0) <= len(value) <= node.get("maxItems", len(value)):
                yield f"{where} has {len(value)} elements"
            for index, element in enumerate(value):
                yield from self.faults(element, node["items"], f"{where}[{index}]")
        if kind == "object":
            known = node.get("properties", {})
            for name in node.get("required", []):
                if name not in value:
                    yield f"{where} lacks {name}"
            for name, element in value.items():
                if name in known:
                    yield from self.faults(element, known[name], f"{where}.{name}")
                elif node.get("additionalProperties") is False:
                    yield f"{where} has {name}"
                elif isinstance(node.get("additionalProperties"), dict):
                    yield from self.faults(element, node["additionalProperties"], f"{where}.{name}")

    def objects(self, node, value, place=()):
        """(schema, place) of every object within the example `value`, itself included."""
        node = self.resolve(node)
        if isinstance(value, dict) and "properties" in node:
            yield node, place
            for name, element in value.items():
                yield from self.objects(node["properties"].get(name, {}), element, (*place, name))
        elif isinstance(value, list) and value:
            yield from self.objects(node["items"], value[0], (*place, 0))


def at(value, place):
    for step in place:
        value = value[step]
    return value


def words_of_the_sources():
    """Every word in quotes of the sources that read JSON: what may be a field of some body."""
    words = set()
    for source in (ROOT / "src/api").rglob("*.cc"):
        if not source.name.endswith("_test.cc"):
            words |= set(re.findall(r'"([a-z][a-z0-9_-]*)"', source.read_text(encoding="utf-8")))
    return words


class DescribedCase(ApiCase):
    @classmethod
    def setUpClass(cls):
        cls.description = Description()
        cls.served = set(output_of(CALLS).split("\n")) - {""}

    def operations(self):
        """(method, pattern, operation) of those that the server has."""
        for call, operation in self.description.operations.items():
            if call in self.served:
                yield *call.split(" ", 1), operation

    def concrete(self, pattern, body=None):
        """A path of this pattern, with the id that the body has."""
        return re.sub(r"\{(\w+)\}", lambda parameter: (body or {}).get(parameter[1], "x"), pattern)

    def real(self, example):
        """The example with files that are there."""
        example = copy.deepcopy(example)
        for name in example if isinstance(example, dict) else ():
            if name == "kernel_image_path":
                example[name] = guest("spin")
            elif name in ("path_on_host", "initrd_path"):
                example[name] = self.image(os.path.basename(example[name]))
            elif name in ("log_path", "metrics_path", "serial_out_path", "snapshot_path", "mem_file_path", "working_set_path"):
                example[name] = self.path(os.path.basename(example[name]))
        return example

    def bodies(self):
        """(method, pattern, schema, name of the example, body) of every documented request."""
        for method, pattern, operation in self.operations():
            schema, examples = self.description.body(operation)
            for name, example in examples.items():
                yield method, pattern, schema, name, self.real(example)

    def objects(self):
        """(method, pattern, name of the example, body, schema, place) of every object that such a body has or is."""
        for method, pattern, schema, name, body in self.bodies():
            if isinstance(body, dict) and "properties" in schema:
                for node, place in self.description.objects(schema, body):
                    yield method, pattern, name, body, node, place

    def refused_naming(self, method, path, body, *names):
        """The refusal is one as described, and names all of `names`."""
        status, answer = self.call(method, path, body)
        self.assertEqual(status, 400, answer)
        self.assertEqual(list(self.description.faults(answer, {"$ref": "#/components/schemas/Refusal"})), [])
        for name in names:
            self.assertIn(name, answer["fault_message"])
        return answer["fault_message"]


class Text(DescribedCase):
    def test_the_description_is_whole_in_itself(self):
        operations = self.description.operations
        self.assertRegex(self.description.document["openapi"], r"^3\.0\.")
        ids = [operation["operationId"] for operation in operations.values()]
        self.assertEqual(len(ids), len(set(ids)))

        def walk(node, place):
            if isinstance(node, dict):
                if "$ref" in node:
                    self.description.resolve(node)
                named = place and place[-1] in ("properties", "schemas", "paths")
                for key, value in node.items():
                    if isinstance(key, str) and key.startswith("x-") and not named:
                        self.assertIn(key, MARKS, place)
                    walk(value, (*place, key))
                if node.get("type") == "object" and not named:
                    self.assertIn("additionalProperties" if "maxProperties" not in node else "nullable", node, place)
                for name in node.get("required", []) if isinstance(node.get("required"), list) else ():
                    self.assertIn(name, node["properties"], place)
            elif isinstance(node, list):
                for value in node:
                    walk(value, place)

        walk(self.description.document, ())
        for call, operation in operations.items():
            with self.subTest(call=call):
                self.assertIn(operation["x-mayfly-when"], STATES)
                self.assertIn("default", operation["responses"])
                self.assertEqual("requestBody" in operation, not call.startswith("GET "))
                item = self.description.document["paths"][call.split(" ", 1)[1]]
                declared = {self.description.resolve(parameter)["name"] for parameter in item.get("parameters", [])}
                self.assertEqual(declared, set(re.findall(r"\{(\w+)\}", call)))

    def test_every_example_is_what_its_schema_says_and_shows_every_field_that_can_be_together(self):
        for call, operation in self.description.operations.items():
            schema, examples = self.description.body(operation)
            if "x-mayfly-refused" in operation or schema is None:
                continue
            with self.subTest(call=call):
                self.assertTrue(examples)
                for name, example in examples.items():
                    self.assertEqual(list(self.description.faults(example, schema, name)), [])
                shown = set().union(*(example for example in examples.values()))
                if call != "PATCH /machine-config":
                    self.assertLessEqual(set(schema.get("properties", {})), shown)

    def test_the_calls_of_the_router_are_those_described(self):
        unnamed = lambda calls: {re.sub(r"\{\w+\}", "{}", call) for call in calls}
        described = unnamed(self.description.operations)
        self.assertEqual(unnamed(self.served) - described, set(), "not described")
        self.assertEqual(described - unnamed(self.served), set(), "described, and not there")


class Served(DescribedCase):
    def setUp(self):
        super().setUp()
        self.start()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        unnamed = {re.sub(r"\{\w+\}", "{}", call) for call in cls.served}
        cls.served = {call for call in cls.description.operations if re.sub(r"\{\w+\}", "{}", call) in unnamed}

    def test_every_get_answers_as_described(self):
        self.do("PUT", "/mmds", {"latest": {}})
        for method, pattern, operation in self.operations():
            if method != "GET" or "x-mayfly-refused" in operation:
                continue
            with self.subTest(path=pattern):
                self.refused_naming("GET", pattern, {}, "body")
                kind = next(iter(operation["responses"]["200"]["content"]))
                if kind == "application/json":
                    schema = self.description.answer(operation)
                    self.assertEqual(list(self.description.faults(self.get(pattern), schema)), [])
                    continue
                client = Connection(self.socket)
                self.addCleanup(client.close)
                client.request("GET", pattern)
                answer = client.getresponse()
                self.assertEqual(answer.status, 200)
                self.assertTrue(answer.getheader("Content-Type").startswith(kind))

    def test_what_is_not_described_is_not_answered(self):
        patterns = [call.split(" ", 1)[1] for call in self.description.operations]
        known = {self.concrete(pattern) for pattern in patterns}
        described = {(call.split(" ", 1)[0], self.concrete(call.split(" ", 1)[1])) for call in self.description.operations}
        variations = {variation for path in known
                      for variation in (path + "/", "/" + path, path + "/x", path.upper(), path[:-1], path + "x", path + "%20",
                                        path.replace("/", "/./", 1), "/v1" + path)}
        variations = {path for path in variations - known if path.startswith("/")}
        # A further letter in an id is another id.
        variations = {path for path in variations
                      if not re.fullmatch(r"/(drives|network-interfaces|pmem)/\w+", path)}
        for method, path in itertools.product(METHODS, sorted(known | variations)):
            if (method, path) in described:
                continue
            with self.subTest(method=method, path=path):
                self.api.request(method, path, body=None if method in ("GET", "HEAD") else "{}")
                answer = self.api.getresponse()
                content = answer.read()
                self.assertEqual(answer.status, 400)
                if method != "HEAD":
                    self.assertIn("fault_message", json.loads(content))

    def test_what_is_described_as_refused_says_why(self):
        for method, pattern, operation in self.operations():
            if "x-mayfly-refused" not in operation:
                continue
            with self.subTest(method=method, path=pattern):
                self.refused_naming(method, self.concrete(pattern), None if method == "GET" else {"any": 1},
                                    operation["x-mayfly-refused"])

    def test_an_id_that_is_not_as_described_is_refused(self):
        for method, pattern, schema, _, body in self.bodies():
            parameter = re.search(r"\{(\w+)\}", pattern)
            if not parameter:
                continue
            for wrong in ("a-b", "a.b", "a" * 65, "%41"):
                with self.subTest(method=method, path=pattern, id=wrong):
                    path = pattern.replace(parameter[0], wrong)
                    status, answer = self.call(method, path, {**body, parameter[1]: wrong})
                    self.assertEqual(status, 400, answer)
            with self.subTest(method=method, path=pattern, other=True):
                status, answer = self.call(method, pattern.replace(parameter[0], "other"), body)
                self.assertEqual(status, 400)
                self.assertIn(parameter[1], answer["fault_message"])

    def wrong_values(self, node):
        """(value, whether the refusal has to name the field) that are not what the schema of a field says."""
        node = self.description.resolve(node)
        kind = node.get("type")
        if kind is None:
            return  # anything is right
        for other, value in (("string", "text"), ("integer", 7), ("boolean", True), ("array", [1]), ("object", {"x": 1})):
            if other != kind:
                yield value, True
        if kind == "integer":
            yield node["minimum"] - 1, True
            yield node["maximum"] + 1, True
            yield 1.5, True
            yield str(node["minimum"]), True
        if kind == "string":
            yield "a\0b", True
            if any(isinstance(choice, str) for choice in node.get("enum", [])):
                yield "nonsense", True
                yield "", True
            if "minLength" in node or "pattern" in node:
                yield "", False
            if "pattern" in node:
                yield "-/-", False
            if "maxLength" in node:
                yield "a" * (node["maxLength"] + 1), False
        if kind == "boolean" and "enum" in node:
            yield True, True
        if kind == "array" and node.get("maxItems") == 0:
            yield ["x"], True

    def test_every_field_is_checked_as_described(self):
        before = self.get("/vm/config")
        tried = 0
        for method, pattern, name, body, node, place in self.objects():
            for field in at(body, place):
                for wrong, named in self.wrong_values(node["properties"][field]):
                    changed = copy.deepcopy(body)
                    at(changed, place)[field] = wrong
                    with self.subTest(method=method, path=pattern, example=name, place=(*place, field), wrong=wrong):
                        self.refused_naming(method, self.concrete(pattern, body), changed, *([field] if named else []))
                        tried += 1
            for field in node.get("required", []):
                changed = copy.deepcopy(body)
                with self.subTest(method=method, path=pattern, example=name, missing=(*place, field)):
                    at(changed, place)[field] = None
                    self.refused_naming(method, self.concrete(pattern, body), changed, field, "missing")
                    del at(changed, place)[field]
                    self.refused_naming(method, self.concrete(pattern, body), changed, field, "missing")
                    tried += 2
        self.assertGreater(tried, 400)
        self.assertEqual(self.get("/vm/config"), before)

    def right_values(self, node):
        """The ends of what the schema of a field allows."""
        node = self.description.resolve(node)
        yield from node.get("enum", [])
        yield from (node[end] for end in ("minimum", "maximum") if end in node)
        if node.get("nullable"):
            yield None
        if node.get("type") == "boolean" and "enum" not in node:
            yield from (True, False)

    def test_no_field_is_narrower_than_described_and_none_is_required_without_saying_so(self):
        tried = 0
        for method, pattern, name, body, node, place in self.objects():
            whole = at(body, place)
            for field in whole:
                for right in self.right_values(node["properties"][field]):
                    changed = copy.deepcopy(body)
                    at(changed, place)[field] = right
                    with self.subTest(method=method, path=pattern, example=name, place=(*place, field), right=right):
                        _, answer = self.call(method, self.concrete(pattern, body), changed)
                        self.assertNotIn(f'"{field}"', answer["fault_message"] if answer else "")
                        tried += 1
            needed = set(node.get("required", [])) & set(whole)
            for field, value in node["properties"].items():
                if "x-mayfly-only-with" in value and field in whole:
                    needed |= set(value["x-mayfly-only-with"])
                    needed |= set() if value.get("nullable") else {field}
            changed = copy.deepcopy(body)
            for field in set(whole) - needed:
                del at(changed, place)[field]
            with self.subTest(method=method, path=pattern, example=name, place=place, only=needed):
                _, answer = self.call(method, self.concrete(pattern, body), changed)
                self.assertNotIn("missing", answer["fault_message"] if answer else "")
        self.assertGreater(tried, 100)

    def test_a_field_that_is_not_described_is_unknown(self):
        words = words_of_the_sources()
        self.assertLess({"drive_id", "overlay", "one_time_burst", "subleaf"}, words)
        for schema in self.description.document["components"]["schemas"].values():
            words |= set(schema.get("properties", {}))
        for method, pattern, name, body, node, place in self.objects():
            if node.get("additionalProperties") is not False:
                continue
            known = {field for field, value in node["properties"].items()
                     if value.get("x-mayfly-only-with", {}).items() <= body.items()}
            for word in sorted(words - known):
                changed = copy.deepcopy(body)
                at(changed, place)[word] = {"x": 1}
                with self.subTest(method=method, path=pattern, example=name, place=place, word=word):
                    self.refused_naming(method, self.concrete(pattern, body), changed, f'unknown field "{word}"')

    def test_every_default_is_what_an_absent_field_gives(self):
        self.do("PUT", "/drives/d", {"drive_id": "d", "path_on_host": self.image("disk"), "is_root_device": False})
        self.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
        found = self.get("/vm/config")
        for section, name in ((found["machine-config"], "MachineConfig"), (found["drives"][0], "Drive")):
            schema = self.description.resolve({"$ref": f"#/components/schemas/{name}"})
            for field, node in schema["properties"].items():
                if "default" in node and not node.get("x-mayfly-own"):
                    with self.subTest(schema=name, field=field):
                        self.assertEqual(section[field], node["default"])

    def test_every_example_that_needs_no_tap_is_taken_before_the_start(self):
        whole = self.description.operations
        for method, pattern, schema, name, body in self.bodies():
            if whole[f"{method} {pattern}"]["x-mayfly-when"] == "after start" or pattern == "/actions":
                with self.subTest(method=method, path=pattern, example=name):
                    self.refused_naming(method, self.concrete(pattern, body), body, "only after")
            elif name != "tap" and pattern not in NEED_A_SNAPSHOT:
                with self.subTest(method=method, path=pattern, example=name):
                    self.do(method, self.concrete(pattern, body), body)
        answer = self.get("/vm/config")
        schema = self.description.answer(whole["GET /vm/config"])
        self.assertEqual(list(self.description.faults(answer, schema)), [])
        self.assertTrue(answer["drives"] and answer["network-interfaces"] and answer["cpu-config"] and answer["logger"])


class Started(Served):
    """The same, and what is possible only then, with a microVM that runs."""

    def setUp(self):
        super().setUp()
        self.do("PUT", "/drives/rootfs", {"drive_id": "rootfs", "path_on_host": self.image("first"), "is_root_device": True})
        self.do("PUT", "/network-interfaces/eth1", {"iface_id": "eth1", "backend": "user"})
        self.boot("spin", track_dirty_pages=True)

    def test_every_call_is_possible_in_the_states_described_only(self):
        for method, pattern, schema, name, body in self.bodies():
            with self.subTest(method=method, path=pattern, example=name):
                when = self.description.operations[f"{method} {pattern}"]["x-mayfly-when"]
                if when == "before start":
                    self.refused_naming(method, self.concrete(pattern, body), body, "only before")
                elif pattern not in NEED_A_SNAPSHOT:
                    if pattern == "/snapshot/create" and not body.get("live"):
                        self.do("PATCH", "/vm", {"state": "Paused"})
                    self.do(method, self.concrete(pattern, body), body)

    test_every_field_is_checked_as_described = None
    test_no_field_is_narrower_than_described_and_none_is_required_without_saying_so = None
    test_a_field_that_is_not_described_is_unknown = None
    test_every_default_is_what_an_absent_field_gives = None
    test_every_example_that_needs_no_tap_is_taken_before_the_start = None
    test_an_id_that_is_not_as_described_is_refused = None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--calls", required=True)
    own, sys.argv[1:] = parser.parse_known_args()
    CALLS = own.calls
    bare_guests.main(__doc__, without_kvm=("Text", "Served"))
