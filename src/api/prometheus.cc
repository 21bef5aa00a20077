#include "api/prometheus.h"

#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

namespace mayfly::api {
namespace {

// Label values escape these (exposition format, "comments, help text, and type information").
std::string label(std::string_view name, std::string_view value) {
  std::string text(name);
  text += "=\"";
  for (const char c : value) {
    if (c == '\n') {
      text += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') {
      text += '\\';
    }
    text += c;
  }
  return text + '"';
}

std::string seconds(std::uint64_t us) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%llu.%06llu", static_cast<unsigned long long>(us / 1'000'000),
                static_cast<unsigned long long>(us % 1'000'000));
  return text.data();
}

// Whether `text` ended in `suffix`, which it does no longer.
bool strip(std::string& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) {
    return false;
  }
  text.resize(text.size() - suffix.size());
  return true;
}

class Writer final : public MetricVisitor {
 public:
  explicit Writer(std::string_view instance_id) : id_(label("id", instance_id)) {}

  void begin_group(std::string_view group, std::string_view device) override {
    group_ = group;
    in_us_ = strip(group_, "_us");
    labels_ = id_;
    has_devices_ = group == "block" || group == "net";
    is_sum_ = has_devices_ && device.empty();
    if (has_devices_) {
      labels_ += ',' + label(group == "block" ? "drive" : "interface", device);
    }
  }
  void field(const char* name, const char* help, Counter& counter) override {
    std::string base = name;
    strip(base, "_count");
    sample(base + "_total", help, "counter", std::to_string(counter.value()));
  }
  void field(const char* name, const char* help, Gauge& gauge) override {
    std::string base = name;
    strip(base, "_count");
    if (strip(base, "_us") || in_us_) {
      sample(base + "_seconds", help, "gauge", seconds(gauge.value()));
    } else {
      sample(base, help, "gauge", std::to_string(gauge.value()));
    }
  }
  void field(const char* name, const char* help, Latency& latency) override {
    std::string base = name;
    strip(base, "_agg");
    const std::string what = help;
    sample(base + "_min_seconds", what + ": the shortest", "gauge", seconds(latency.min_us()));
    sample(base + "_max_seconds", what + ": the longest", "gauge", seconds(latency.max_us()));
    sample(base + "_seconds_total", what + ": the time of all", "counter", seconds(latency.sum_us().value()));
  }
  void end_group() override {}

  // One that the store does not hold.
  void fact(const char* name, const char* help, std::string_view more_labels, const char* value) {
    add(name, help, "gauge", id_ + ',' + std::string(more_labels), value);
  }

  std::string text() const {
    std::string all;
    for (const std::string& family : families_) {
      all += family;
    }
    return all;
  }

 private:
  void sample(const std::string& name, std::string_view help, const char* type, std::string_view value) {
    if (!is_sum_) {
      add("mayfly_" + group_ + '_' + name, help, type, labels_, value);
    }
  }
  void add(const std::string& name, std::string_view help, std::string_view type, std::string_view labels,
           std::string_view value) {
    const auto [place, is_new] = places_.try_emplace(name, families_.size());
    if (is_new) {
      families_.emplace_back("# HELP " + name + ' ' + std::string(help) + "\n# TYPE " + name + ' ' +
                             std::string(type) + '\n');
    }
    families_[place->second] += name + '{' + std::string(labels) + "} " + std::string(value) + '\n';
  }

  const std::string id_;
  std::string group_;
  std::string labels_;
  bool in_us_ = false;
  bool has_devices_ = false;
  bool is_sum_ = false;
  // The lines of one name have to stand together, which those of two devices do not as they come.
  std::vector<std::string> families_;
  std::map<std::string, std::size_t> places_;  // in families_, by name
};

}  // namespace

std::string prometheus_text(Metrics& store, const PrometheusFacts& facts) {
  Writer writer(facts.instance_id);
  writer.fact("mayfly_vm_info", "What runs; always 1", label("version", facts.monitor_version), "1");
  for (const std::string_view state : {"Not started", "Running", "Paused"}) {
    writer.fact("mayfly_vm_state", "1 for the state that the microVM is in", label("state", state),
                state == facts.state ? "1" : "0");
  }
  store.visit(writer);
  return writer.text();
}

}  // namespace mayfly::api
