#include "mayfly/doctor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

// A host made of files below a folder of the test's own, at first one that has everything.
class Doctor : public ::testing::Test {
 protected:
  void SetUp() override {
    write("/proc/cpuinfo", "processor\t: 0\nmodel name\t: Fake CPU\nflags\t\t: fpu vmx sse\n");
    write("/dev/net/tun", "");
    write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n");
    write("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n");
    write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    write("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    host_.root = root_;
    host_.check_kvm = [] { return std::vector<std::string>{}; };
    host_.check_userfaultfd = [] { return Result<void>(); };
    host_.kvm_is_hardware = [] { return true; };
  }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void remove(const std::string& path) { std::filesystem::remove_all(root_ + path); }

  // The finding about `subject`, of which there must be one.
  Finding find(const std::string& subject) {
    Finding found{Verdict::kBad, "", "", ""};
    int count = 0;
    for (const Finding& finding : examine(host_)) {
      if (finding.subject == subject) {
        found = finding;
        ++count;
      }
    }
    EXPECT_EQ(count, 1) << subject;
    return found;
  }

  void expect(const std::string& subject, Verdict verdict, const std::string& detail,
              const std::string& advice = "") {
    const Finding finding = find(subject);
    EXPECT_EQ(finding.verdict, verdict) << subject;
    EXPECT_NE(finding.detail.find(detail), std::string::npos) << subject << ": " << finding.detail;
    EXPECT_NE(finding.advice.find(advice), std::string::npos) << subject << ": " << finding.advice;
    EXPECT_EQ(finding.advice.empty(), advice.empty()) << subject << ": " << finding.advice;
  }

  const testing::TempDir dir_;
  const std::string root_ = dir_.file("root");
  HostView host_;
};

TEST_F(Doctor, a_host_with_everything_is_good_throughout) {
  const auto findings = examine(host_);
  EXPECT_EQ(findings.size(), 8U);
  for (const Finding& finding : findings) {
    EXPECT_EQ(finding.verdict, Verdict::kGood) << finding.subject << ": " << finding.detail;
    EXPECT_EQ(finding.advice, "") << finding.subject;
  }
  EXPECT_TRUE(can_run(findings));
}

TEST_F(Doctor, the_processor_is_named_with_its_virtualization) {
  expect("processor", Verdict::kGood, "Fake CPU, hardware virtualization Intel VT-x");
  write("/proc/cpuinfo", "model name : X\nflags : svm\n");
  expect("processor", Verdict::kGood, "X, hardware virtualization AMD-V");
}

TEST_F(Doctor, a_processor_without_virtualization_is_limited_and_similar_flags_do_not_count) {
  write("/proc/cpuinfo", "model name : X\nflags : svm_lock vmxx avx\nvmx flags : vnmi\n");
  expect("processor", Verdict::kLimited, "no hardware virtualization", "firmware");
  remove("/proc/cpuinfo");
  expect("processor", Verdict::kLimited, "no hardware virtualization", "firmware");
}

TEST_F(Doctor, a_kvm_that_cannot_be_used_is_bad_and_its_error_tells_the_way_out) {
  host_.check_kvm = []() -> Result<std::vector<std::string>> {
    return fail(ErrorCode::kNotFound, "open KVM device /dev/kvm: gone; load the module");
  };
  expect("KVM", Verdict::kBad, "load the module");
  EXPECT_FALSE(can_run(examine(host_)));
}

TEST_F(Doctor, a_kvm_without_hardware_behind_it_is_limited) {
  host_.kvm_is_hardware = [] { return false; };
  expect("KVM", Verdict::kLimited, "interpreted", "hardware virtualization");
  EXPECT_TRUE(can_run(examine(host_)));
}

TEST_F(Doctor, every_warning_of_kvm_is_a_finding) {
  host_.check_kvm = [] { return std::vector<std::string>{"no such thing"}; };
  expect("KVM capability", Verdict::kLimited, "no such thing", "newer host kernel");
  host_.check_kvm = [] { return std::vector<std::string>{"one", "two"}; };
  EXPECT_EQ(examine(host_).size(), 10U);
}

TEST_F(Doctor, tap_interfaces_need_the_device_and_the_permission) {
  remove("/dev/net/tun");
  expect("network (tun)", Verdict::kLimited, "does not exist", "modprobe tun");
  if (::geteuid() != 0) {  // root may do anything
    write("/dev/net/tun", "");
    std::filesystem::permissions(root_ + "/dev/net/tun", std::filesystem::perms::none);
    expect("network (tun)", Verdict::kLimited, "not accessible", "udev");
  }
}

TEST_F(Doctor, huge_pages_are_counted) {
  expect("huge pages", Verdict::kGood, "8 pages of 2 MiB reserved, 3 of them free");
  write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
  expect("huge pages", Verdict::kLimited, "0 pages", "vm.nr_hugepages");
  for (const char* nonsense : {"", "many\n"}) {
    write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", nonsense);
    expect("huge pages", Verdict::kLimited, "no 2 MiB pages");
  }
}

TEST_F(Doctor, the_mode_of_transparent_huge_pages_is_told) {
  const std::string path = "/sys/kernel/mm/transparent_hugepage/enabled";
  expect("transparent huge pages", Verdict::kGood, "madvise");
  write(path, "always madvise [never]\n");
  expect("transparent huge pages", Verdict::kLimited, "never", "echo madvise");
  for (const char* nonsense : {"", "always", "]always[", "[always"}) {
    write(path, nonsense);
    expect("transparent huge pages", Verdict::kLimited, "not in this kernel");
  }
}

TEST_F(Doctor, either_version_of_cgroups_is_good_and_none_is_limited) {
  expect("cgroups", Verdict::kGood, "version 2, controllers: cpu memory");
  write("/sys/fs/cgroup/cgroup.controllers", "\n");
  expect("cgroups", Verdict::kGood, "controllers: none");
  remove("/sys/fs/cgroup/cgroup.controllers");
  expect("cgroups", Verdict::kLimited, "not mounted", "mount -t cgroup2");
  for (const char* controller : {"memory", "cpu"}) {
    write(std::string("/sys/fs/cgroup/") + controller + "/tasks", "");
    expect("cgroups", Verdict::kGood, "version 1");
    remove(std::string("/sys/fs/cgroup/") + controller);
  }
}

TEST_F(Doctor, userfaultfd_is_tried) {
  host_.check_userfaultfd = []() -> Result<void> { return fail(ErrorCode::kPermission, "not for you"); };
  expect("userfaultfd", Verdict::kLimited, "not for you", "/dev/userfaultfd");
}

TEST_F(Doctor, an_empty_host_is_examined_all_the_same) {
  std::filesystem::remove_all(root_);
  EXPECT_EQ(examine(host_).size(), 8U);
}

TEST(DoctorReport, a_finding_is_a_line_and_its_advice_stands_below) {
  const std::vector<Finding> findings = {{Verdict::kGood, "a", "fine", ""},
                                         {Verdict::kLimited, "b", "so so", "do this"},
                                         {Verdict::kBad, "c", "broken", "do that"}};
  EXPECT_EQ(report(findings),
            "good     a: fine\n"
            "limited  b: so so\n"
            "         -> do this\n"
            "BAD      c: broken\n"
            "         -> do that\n"
            "This host cannot run microVMs yet.\n");
  EXPECT_EQ(report({findings[0]}), "good     a: fine\nThis host can run microVMs.\n");
}

TEST(DoctorReport, only_what_is_bad_keeps_a_host_from_running) {
  EXPECT_TRUE(can_run({}));
  EXPECT_TRUE(can_run({{Verdict::kGood, "", "", ""}, {Verdict::kLimited, "", "", ""}}));
  EXPECT_FALSE(can_run({{Verdict::kGood, "", "", ""}, {Verdict::kBad, "", "", ""}}));
}

TEST(ThisHost, every_question_has_an_answer) {
  const HostView host = this_host();
  EXPECT_EQ(host.root, "");
  EXPECT_GE(examine(host).size(), 8U);
}

}  // namespace
}  // namespace mayfly
