#include "seccomp/compiler/policy.h"

#include <seccomp.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "json/parse_json.h"
#include "seccomp/compiler/constants.h"

namespace mayfly::seccomp {
namespace {

using nlohmann::json;

constexpr unsigned kMaxArgument = 5;
constexpr int kMaxLevels = 8;

auto wrong(const std::string& what) {
  return fail(ErrorCode::kInvalidArgument, what);
}

Result<void> check_keys(const json& object, std::initializer_list<std::string_view> required,
                        std::initializer_list<std::string_view> optional) {
  if (!object.is_object()) {
    return wrong("must be an object");
  }
  for (const std::string_view key : required) {
    if (!object.contains(key)) {
      return wrong("has no \"" + std::string(key) + "\"");
    }
  }
  for (const auto& [key, value] : object.items()) {
    const auto is = [&name = key](std::string_view known) { return name == known; };
    if (std::ranges::none_of(required, is) && std::ranges::none_of(optional, is)) {
      return wrong("there is no field \"" + key + "\"");
    }
  }
  return {};
}

// A number, or names of constants with '|' between them.
Result<std::uint64_t> parse_value(const json& value) {
  if (value.is_number_unsigned()) {
    return value.get<std::uint64_t>();
  }
  if (!value.is_string()) {
    return wrong("must be a number of 0 or more, or names of constants");
  }
  std::uint64_t sum = 0;
  std::string_view rest = value.get_ref<const std::string&>();
  for (bool more = true; more;) {
    const std::size_t bar = rest.find('|');
    const std::string_view name = rest.substr(0, bar);
    more = bar != std::string_view::npos;
    rest.remove_prefix(more ? bar + 1 : rest.size());
    const auto number = constant(name);
    if (!number) {
      return wrong("no constant is known by the name \"" + std::string(name) + "\"; a number will do");
    }
    sum |= *number;
  }
  return sum;
}

Result<ArgumentTest> parse_argument(const json& value, std::string_view call) {
  MAYFLY_TRY(check_keys(value, {"index", "equals"}, {"mask"}));
  const json& index = value["index"];
  if (!index.is_number_unsigned() || index.get<std::uint64_t>() > kMaxArgument) {
    return wrong("\"index\" must be a number from 0 to 5");
  }
  ArgumentTest test{.index = index.get<unsigned>(), .mask = 0, .value = 0};
  const std::uint64_t bits = argument_bits(call, test.index);
  test.mask = bits;
  if (value.contains("mask")) {
    MAYFLY_TRY_ASSIGN(test.mask, parse_value(value["mask"]).map_error([](const Error& error) {
      return error.within("\"mask\"");
    }));
  }
  MAYFLY_TRY_ASSIGN(test.value, parse_value(value["equals"]).map_error([](const Error& error) {
    return error.within("\"equals\"");
  }));
  if ((test.mask & ~bits) != 0 || (test.value & ~test.mask) != 0) {
    return wrong("\"equals\" has bits that the argument or its \"mask\" does not have: it can never hold");
  }
  return test;
}

Result<Rule> parse_rule(const json& value) {
  MAYFLY_TRY(check_keys(value, {"call", "reason"}, {"arguments"}));
  const json& call = value["call"];
  if (!call.is_string()) {
    return wrong("\"call\" must be the name of a system call");
  }
  const auto& name = call.get_ref<const std::string&>();
  const json& reason = value["reason"];
  if (!reason.is_string() || reason.get_ref<const std::string&>().empty()) {
    return wrong(name + ": \"reason\" must say what the call is needed for");
  }
  Rule rule{.number = ::seccomp_syscall_resolve_name(name.c_str()), .arguments = {}};
  if (rule.number < 0) {
    return wrong("this processor has no system call \"" + name + "\"");
  }
  if (value.contains("arguments")) {
    const json& arguments = value["arguments"];
    if (!arguments.is_array() || arguments.empty()) {
      return wrong(name + ": \"arguments\" must be a list of at least one");
    }
    std::set<unsigned> tested;
    for (const json& argument : arguments) {
      MAYFLY_TRY_ASSIGN(const ArgumentTest test,
                        parse_argument(argument, name).map_error([&name](const Error& error) {
                          return error.within(name + ": an argument");
                        }));
      if (!tested.insert(test.index).second) {
        return wrong(name + ": argument " + std::to_string(test.index) + " is tested twice");
      }
      rule.arguments.push_back(test);
    }
  }
  return rule;
}

std::optional<FilteredThread> parse_thread(const json& value) {
  for (const FilteredThread thread : kFilteredThreads) {
    if (value == name_of(thread)) {
      return thread;
    }
  }
  return std::nullopt;
}

// Whether the two say the same of a call.
bool same(const Rule& one, const Rule& other) {
  return one.number == other.number &&
         std::ranges::equal(
             one.arguments, other.arguments, {},
             [](const ArgumentTest& a) { return std::tie(a.index, a.mask, a.value); },
             [](const ArgumentTest& b) { return std::tie(b.index, b.mask, b.value); });
}

Result<void> check_against_others(const Rule& rule, const std::vector<Rule>& others) {
  for (const Rule& other : others) {
    if (same(rule, other)) {
      return wrong("it is given twice");
    }
    if (rule.number == other.number && (rule.arguments.empty() || other.arguments.empty())) {
      return wrong("another rule allows the call with any arguments");
    }
  }
  return {};
}

Result<Policy> parse_document(const json& document) {
  MAYFLY_TRY(check_keys(document, {"thread", "rules"}, {"about"}));
  const auto thread = parse_thread(document["thread"]);
  if (!thread) {
    return wrong("\"thread\" must be monitor, api, vcpu or snapshot");
  }
  if (!document["rules"].is_array() || document["rules"].empty()) {
    return wrong("\"rules\" must be a list of at least one");
  }
  Policy policy{.thread = *thread, .rules = {}};
  for (const json& value : document["rules"]) {
    const auto within = [&policy](const Error& error) {
      return error.within("rule " + std::to_string(policy.rules.size() + 1));
    };
    MAYFLY_TRY_ASSIGN(Rule rule, parse_rule(value).map_error(within));
    MAYFLY_TRY(check_against_others(rule, policy.rules).map_error(within));
    policy.rules.push_back(std::move(rule));
  }
  return policy;
}

}  // namespace

Result<Policy> parse_policy(std::string_view text, std::string_view name) {
  MAYFLY_TRY_ASSIGN(const json document, parse_json(text, name, kMaxLevels));
  return parse_document(document).map_error(
      [name](const Error& error) { return error.within(std::string(name)); });
}

}  // namespace mayfly::seccomp
