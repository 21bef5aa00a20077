// The CPU template of the dialect, of x86-64, as JSON and as typed data.
#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/json_object.h"
#include "api/sections.h"
#include "base/text.h"
#include "kvm/x86_64/cpu_template.h"

namespace mayfly::api {
namespace {

using nlohmann::json;
using x86_64::BitChange;
using x86_64::CpuidChange;
using x86_64::CpuidRegister;
using x86_64::CpuidRegisterChange;
using x86_64::CpuTemplate;
using x86_64::kMaxCpuidFlags;
using x86_64::MsrChange;

constexpr std::array<std::string_view, 4> kRegisters = {"eax", "ebx", "ecx", "edx"};

// Reads every element of the list `key`, if it is there, by `read_one`(value, path of the element).
template <typename Element, typename Read>
Result<std::vector<Element>> read_list(JsonObject& object, const std::string& path, std::string_view key,
                                       Read read_one) {
  std::vector<Element> elements;
  const json* list = object.value(key);
  if (list == nullptr) {
    return elements;
  }
  const std::string name = path + "." + std::string(key);
  if (!list->is_array()) {
    return fail(ErrorCode::kInvalidArgument, name + ": must be a list, is " + list->type_name());
  }
  for (const json& value : *list) {
    MAYFLY_TRY_ASSIGN(auto element, read_one(value, name + "[" + std::to_string(elements.size()) + "]"));
    elements.push_back(std::move(element));
  }
  return elements;
}

// A list that may be there, but not hold anything.
Result<void> expect_empty(JsonObject& object, const std::string& path, std::string_view key) {
  const auto refuse = [&](const json& /*value*/, const std::string& /*name*/) -> Result<int> {
    return fail(ErrorCode::kInvalidArgument,
                path + "." + std::string(key) + ": is for aarch64 processors only");
  };
  MAYFLY_TRY(read_list<int>(object, path, key, refuse));
  return {};
}

// "0x1a" or "0b11": the dialect has no decimal numbers here.
std::optional<std::uint32_t> parse_number(std::string_view text) {
  const bool is_binary = text.starts_with("0b");
  if (!is_binary && !text.starts_with("0x")) {
    return std::nullopt;
  }
  text.remove_prefix(2);
  std::uint32_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number, is_binary ? 2 : 16);
  return error == std::errc() && stop == end ? std::optional(number) : std::nullopt;
}

std::uint32_t number(JsonObject& object, std::string_view key) {
  object.require(key);
  const auto text = object.string(key);
  const auto value = text ? parse_number(*text) : std::nullopt;
  if (text && !value) {
    object.refuse(key, "\"" + *text + "\" must be a number of 32 bits such as \"0x1a\" or \"0b11\"");
  }
  return value.value_or(0);
}

template <typename Word>
BitChange<Word> bitmap(JsonObject& object) {
  constexpr std::string_view kKey = "bitmap";
  object.require(kKey);
  const auto text = object.string(kKey);
  if (!text) {
    return {};
  }
  auto change = BitChange<Word>::parse(*text);
  if (!change) {
    object.refuse(kKey, "\"" + *text + "\" " + change.error().message());
  }
  return change.value_or(BitChange<Word>{});
}

Result<CapabilityChange> read_capability(const json& value, const std::string& path) {
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  const bool required = !text.starts_with('!');
  const std::string_view digits = std::string_view(text).substr(required ? 0 : 1);
  const auto number = digits.starts_with("0x") || digits.starts_with("0X")
                          ? std::nullopt
                          : parse_integer<std::uint32_t>(digits);
  if (!number) {
    return fail(ErrorCode::kInvalidArgument,
                path +
                    ": must be the number of a capability in a string, such as \"171\", or \"!56\" for one "
                    "that is not to be asked for");
  }
  return CapabilityChange{*number, required};
}

Result<CpuidRegisterChange> read_register(const json& value, const std::string& path) {
  JsonObject object(value, path);
  CpuidRegisterChange change;
  object.require("register");
  change.reg = static_cast<CpuidRegister>(object.choice("register", kRegisters).value_or(0));
  change.bits = bitmap<std::uint32_t>(object);
  MAYFLY_TRY(object.finish());
  return change;
}

Result<CpuidChange> read_cpuid(const json& value, const std::string& path) {
  JsonObject object(value, path);
  CpuidChange change;
  change.leaf = number(object, "leaf");
  change.subleaf = number(object, "subleaf");
  object.require("flags");
  change.flags = static_cast<std::uint32_t>(object.integer("flags", 0, kMaxCpuidFlags).value_or(0));
  object.require("modifiers");
  MAYFLY_TRY_ASSIGN(change.registers,
                    read_list<CpuidRegisterChange>(object, path, "modifiers", read_register));
  MAYFLY_TRY(object.finish());
  return change;
}

Result<MsrChange> read_msr(const json& value, const std::string& path) {
  JsonObject object(value, path);
  MsrChange change;
  change.index = number(object, "addr");
  change.bits = bitmap<std::uint64_t>(object);
  MAYFLY_TRY(object.finish());
  return change;
}

}  // namespace

Result<arch::CpuTemplate> read_cpu_config(const json& value, const std::string& path) {
  JsonObject object(value, path);
  CpuTemplate result;
  MAYFLY_TRY_ASSIGN(result.capabilities,
                    read_list<CapabilityChange>(object, path, "kvm_capabilities", read_capability));
  MAYFLY_TRY_ASSIGN(result.cpuid, read_list<CpuidChange>(object, path, "cpuid_modifiers", read_cpuid));
  MAYFLY_TRY_ASSIGN(result.msrs, read_list<MsrChange>(object, path, "msr_modifiers", read_msr));
  MAYFLY_TRY(expect_empty(object, path, "reg_modifiers"));
  MAYFLY_TRY(expect_empty(object, path, "vcpu_features"));
  MAYFLY_TRY(object.finish());
  if (auto valid = result.validate(); !valid) {
    return tl::make_unexpected(valid.error().within(path));
  }
  return result;
}

json to_json(const arch::CpuTemplate& cpu_template) {
  json capabilities = json::array();
  for (const CapabilityChange& change : cpu_template.capabilities) {
    capabilities.push_back((change.required ? "" : "!") + std::to_string(change.number));
  }
  json cpuid = json::array();
  for (const CpuidChange& change : cpu_template.cpuid) {
    json registers = json::array();
    for (const CpuidRegisterChange& entry : change.registers) {
      registers.push_back({{"register", name_of(entry.reg)}, {"bitmap", entry.bits.to_string()}});
    }
    cpuid.push_back({{"leaf", hex(change.leaf)},
                     {"subleaf", hex(change.subleaf)},
                     {"flags", change.flags},
                     {"modifiers", std::move(registers)}});
  }
  json msrs = json::array();
  for (const MsrChange& change : cpu_template.msrs) {
    msrs.push_back({{"addr", hex(change.index)}, {"bitmap", change.bits.to_string()}});
  }
  return {{"kvm_capabilities", std::move(capabilities)},
          {"cpuid_modifiers", std::move(cpuid)},
          {"msr_modifiers", std::move(msrs)}};
}

}  // namespace mayfly::api
