// What the files of the stand-in driver share: its one context, streams that run in order, and captures.
//
// Work given to a stream runs at once, or, with lazy=1, when someone waits for it: then whatever was not waited for shows. An error of
// work on a stream is kept and told at the next call that waits, and from then on by every call (it is sticky), as the driver does.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

#include "cuda_types.hpp"
#include "launch.hpp"
#include "memory.hpp"
#include "settings.hpp"

#define API extern "C" __attribute__((visibility("default"))) CUresult

struct Function {
    const emulator::Kernel* kernel;
    Module* module;
    unsigned dynamic_shared_limit = emulator::static_shared_bytes;
};

// A launch with its own copy of the arguments.
struct PackedLaunch {
    Function* function;
    const emulator::Kernel* kernel;
    emulator::Index grid, block;
    unsigned shared_bytes;
    std::vector<uint64_t> storage;
    std::vector<void*> arguments;
};

enum class NodeKind { kernel, copy, fill, host, empty };
struct GraphNode {
    NodeKind kind;
    std::function<CUresult()> run;
    std::shared_ptr<PackedLaunch> launch;  // of a kernel
};
struct Graph {
    std::vector<GraphNode> nodes;
};
struct GraphExec {
    std::vector<GraphNode> nodes;
};

// A capture under way. Streams join it by waiting for an event recorded in it; nodes stand in the order of the calls, which is an order
// that all of their dependencies allow.
struct Capture {
    Stream* origin;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    std::vector<GraphNode> nodes;
    std::unordered_set<Stream*> joined;      // beside the origin
    std::unordered_set<Stream*> unjoined;    // of those, with work that the origin does not wait for yet
};

struct Stream {
    bool blocking;  // waits for the legacy default stream and the other way round
    unsigned flags = 0;
    int priority = 0;
    std::deque<std::function<CUresult()>> queue;
    uint64_t given = 0, done = 0;
    std::shared_ptr<Capture> capture;
};

struct Event {
    bool timing;
    bool recorded = false;
    Stream* stream = nullptr;
    uint64_t at = 0;  // complete when the stream has done so much
    bool reported_unready = false;
    double time_ms = 0;
    std::weak_ptr<Capture> capture;
    bool captured = false;
};

namespace driver {

using emulator::settings;

// Everything, behind one lock that every call holds. Never freed.
struct State {
    std::recursive_mutex mutex;
    bool initialized = false;
    unsigned retained = 0;
    CUresult pending = CUDA_SUCCESS;  // an error of work on a stream that nobody was told of yet
    CUresult sticky = CUDA_SUCCESS;
    bool lost = false;
    uint64_t images = 0;
    Stream legacy{true}, per_thread{true};
    std::unordered_set<Stream*> streams;
    std::unordered_set<Event*> events;
    std::unordered_set<Module*> modules;
    std::unordered_set<Graph*> graphs;
    std::unordered_set<GraphExec*> graph_execs;
    std::vector<std::shared_ptr<Capture>> captures;
};
State& state();

// Says why a call is refused (explain=1) and returns the error.
CUresult refuse(CUresult error, const char* format, ...) __attribute__((format(printf, 2, 3)));
CUresult from(emulator::Memory result, const char* call);

// The lock, and whether the call may go on: initialised, not lost, no sticky error, a context of this thread where one is needed.
struct Call {
    std::lock_guard<std::recursive_mutex> lock;
    CUresult result;
    explicit Call(bool needs_context = true);
};
#define ENTER(...)                 \
    ::driver::Call call{__VA_ARGS__}; \
    if (call.result != CUDA_SUCCESS) return call.result

// The stream of a handle (the legacy default one for null), or null where there is none.
Stream* stream_of(CUstream handle);
// Gives work to a stream, or to the capture that it is in. `node` describes it for a graph.
CUresult submit(Stream* stream, GraphNode node);
// Runs what the stream has been given, up to a point.
void drain(Stream* stream, uint64_t up_to);
void drain_all();
// After waiting: the error that work had, which is sticky from now on.
CUresult waited();
// Refuses, and invalidates captures, where a call that could wait or allocate is made while this thread (or, in global mode, any) captures.
CUresult no_capture(const char* what);
// The same for a call that waits on one stream.
CUresult not_capturing(Stream* stream, const char* what);
// Counts kernels that are about to be given to a stream and has them fail as the settings say.
CUresult admit_kernels(uint64_t count, bool* faults);
CUresult launch(CUfunction function, emulator::Index grid, emulator::Index block, unsigned shared_bytes, CUstream stream, void** arguments,
                void** extra);
void reset_errors();
int shared_opt_in_bytes();

}  // namespace driver
