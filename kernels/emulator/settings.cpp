#include "settings.hpp"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mutex>
#include <string>

#include "faults.hpp"

namespace emulator {

namespace {

struct Word {
    const char* name;
    uint64_t Settings::*value;
};
constexpr Word words[] = {
    {"devices", &Settings::devices},
    {"stub", &Settings::stub},
    {"memory", &Settings::memory_bytes},
    {"integrated", &Settings::integrated},
    {"pageable", &Settings::pageable},
    {"register", &Settings::register_host},
    {"vmm", &Settings::vmm},
    {"granularity", &Settings::granularity_bytes},
    {"threads", &Settings::threads},
    {"lazy", &Settings::lazy},
    {"protect", &Settings::protect},
    {"tell", &Settings::tell},
    {"explain", &Settings::explain},
    {"steps", &Settings::step_limit},
    {"seconds", &Settings::seconds_limit},
    {"fail_alloc", &Settings::fail_alloc},
    {"fail_launch", &Settings::fail_launch},
    {"fault_launch", &Settings::fault_launch},
    {"context", &Settings::context_bytes},
    {"kernel", &Settings::kernel_bytes},
    {"lose_device", &Settings::lose_device},
    {"lost_error", &Settings::lost_error},
    {"reject_images", &Settings::reject_images},
    {"image_error", &Settings::image_error},
    {"refuse_graphs", &Settings::refuse_graphs},
    {"fail_register", &Settings::fail_register},
};

// Never freed: threads of the host may still read them while the process ends.
Settings& current_settings() {
    static Settings* const s = new Settings;
    return *s;
}

bool number(const std::string& text, uint64_t& value) {
    if (text.empty() || text.size() > 19 || text.find_first_not_of("0123456789") != std::string::npos) return false;
    value = strtoull(text.c_str(), nullptr, 10);
    return true;
}

void set(Settings& s, const std::string& word) {
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    uint64_t n = 0, minor = 0;
    if (name == "capability") {
        const size_t dot = value.find('.');
        if (dot != std::string::npos && number(value.substr(0, dot), n) && number(value.substr(dot + 1), minor)) {
            s.capability_major = int(n);
            s.capability_minor = int(minor);
            return;
        }
        fatal("the setting `%s` is not understood; capability=MAJOR.MINOR is expected", word.c_str());
    }
    if (!number(value, n)) fatal("the setting `%s` is not understood; NAME=NUMBER is expected", word.c_str());
    if (name == "driver") {
        s.driver = int(n);
        return;
    }
    for (const Word& w : words) {
        if (name == w.name) {
            s.*w.value = n;
            return;
        }
    }
    std::string known = "capability, driver";
    for (const Word& w : words) known += std::string(", ") + w.name;
    fatal("there is no setting `%s`; there are %s", name.c_str(), known.c_str());
}

}  // namespace

const Settings& settings() {
    static std::once_flag once;
    std::call_once(once, [] {
        if (const char* text = getenv("ESPALIER_EMULATOR")) configure(text);
    });
    return current_settings();
}

void configure(const char* text) {
    Settings fresh;
    std::string rest = text ? text : "";
    while (!rest.empty()) {
        const size_t comma = rest.find(',');
        const std::string word = rest.substr(0, comma);
        if (!word.empty()) set(fresh, word);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
    const uint64_t granule = fresh.granularity_bytes, page = uint64_t(sysconf(_SC_PAGESIZE));
    if (granule < page || granule > Settings{}.granularity_bytes || (granule & (granule - 1)) != 0)
        fatal("granularity=%llu is not understood; a power of two from a page to 2097152 is expected", (unsigned long long)granule);
    if (fresh.threads < 1) fresh.threads = 1;
    if (fresh.threads > 64) fresh.threads = 64;
    current_settings() = fresh;
    Counters& c = counters();
    for (std::atomic<uint64_t>* count = &c.launches; count <= &c.streams; count++) {
        // What is there now goes on being counted.
        if (count != &c.bytes_allocated && count != &c.bytes_mapped && count != &c.bytes_created && count != &c.bytes_registered)
            *count = 0;
    }
}

Counters& counters() {
    static Counters* const c = new Counters{};
    return *c;
}

uint64_t counter(const char* name) {
#define COUNTER(NAME) \
    if (strcmp(name, #NAME) == 0) return counters().NAME
    COUNTER(launches);
    COUNTER(kernels);
    COUNTER(refused_launches);
    COUNTER(blocks);
    COUNTER(graph_launches);
    COUNTER(graphs);
    COUNTER(captures);
    COUNTER(modules);
    COUNTER(images_refused);
    COUNTER(allocations);
    COUNTER(refused_allocations);
    COUNTER(frees);
    COUNTER(bytes_allocated);
    COUNTER(bytes_mapped);
    COUNTER(bytes_created);
    COUNTER(bytes_registered);
    COUNTER(mappings);
    COUNTER(registrations);
    COUNTER(copies_to_device);
    COUNTER(copies_to_host);
    COUNTER(copies_on_device);
    COUNTER(bytes_to_device);
    COUNTER(bytes_to_host);
    COUNTER(bytes_on_device);
    COUNTER(fills);
    COUNTER(synchronizations);
    COUNTER(events);
    COUNTER(highest_streams);
    COUNTER(lowest_streams);
    COUNTER(refused_graphs);
    COUNTER(streams);
#undef COUNTER
    return UINT64_MAX;
}

}  // namespace emulator
