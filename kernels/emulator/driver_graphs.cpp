// Capture of a stream's work and graphs of it.
#include <algorithm>

#include "driver.hpp"

using namespace driver;

static thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    ENTER(false);
    if (!mode || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, thread_mode);
    return CUDA_SUCCESS;
}

API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    ENTER();
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    if (stream == &state().legacy) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
    if (stream->capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "cuStreamBeginCapture on a stream that captures already");
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    state().captures.push_back(stream->capture);
    emulator::counters().captures++;
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    ENTER();
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    *graph = nullptr;
    const std::shared_ptr<Capture> capture = stream->capture;
    if (!capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "cuStreamEndCapture on a stream that does not capture");
    if (capture->origin != stream) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id()) {
        return refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread");
    }
    stream->capture = nullptr;
    for (Stream* joined : capture->joined) {
        if (state().streams.count(joined)) joined->capture = nullptr;
    }
    std::erase(state().captures, capture);
    if (capture->invalid) return refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "something that is not allowed was done while capturing");
    if (!capture->unjoined.empty()) {
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "the capture forked to a stream that was not joined again");
    }
    auto* fresh = new Graph{std::move(capture->nodes)};
    state().graphs.insert(fresh);
    *graph = fresh;
    return CUDA_SUCCESS;
}

static CUstreamCaptureStatus status_of(const Stream* stream) {
    if (!stream->capture) return CU_STREAM_CAPTURE_STATUS_NONE;
    return stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    ENTER();
    const Stream* stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!status) return CUDA_ERROR_INVALID_VALUE;
    *status = status_of(stream);
    return CUDA_SUCCESS;
}

API cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status, uint64_t* id, CUgraph* graph,
                              const CUgraphNode** dependencies, size_t* dependency_count) {
    ENTER();
    const Stream* stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!status) return CUDA_ERROR_INVALID_VALUE;
    if (graph || dependencies || dependency_count) return refuse(CUDA_ERROR_NOT_SUPPORTED, "a capture's graph before its end");
    *status = status_of(stream);
    if (id) *id = reinterpret_cast<uint64_t>(stream->capture.get());
    return CUDA_SUCCESS;
}

API cuGraphCreate(CUgraph* graph, unsigned flags) {
    ENTER();
    if (!graph || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    *graph = new Graph;
    state().graphs.insert(*graph);
    return CUDA_SUCCESS;
}

API cuGraphDestroy(CUgraph graph) {
    ENTER();
    if (!state().graphs.erase(graph)) return refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphDestroy: there is no such graph");
    delete graph;
    return CUDA_SUCCESS;
}

// Nodes in order; asked with no room, how many there are.
API cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
    ENTER();
    if (!state().graphs.count(graph) || !count) return CUDA_ERROR_INVALID_VALUE;
    if (nodes) {
        for (size_t i = 0; i < *count; i++) nodes[i] = i < graph->nodes.size() ? &graph->nodes[i] : nullptr;
        *count = std::min(*count, graph->nodes.size());
    } else {
        *count = graph->nodes.size();
    }
    return CUDA_SUCCESS;
}

static CUresult instantiate(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    if (!exec || !state().graphs.count(graph) || flags > 15) return refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphInstantiate");
    // Launch from the device excludes freeing at launch.
    if ((flags & 4) != 0) return refuse(flags & 1 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED, "graphs launched from the device");
    if (emulator::counters().refused_graphs < settings().refuse_graphs) {
        emulator::counters().refused_graphs++;
        return refuse(CUDA_ERROR_OUT_OF_MEMORY, "refuse_graphs");
    }
    *exec = new GraphExec{graph->nodes};
    state().graph_execs.insert(*exec);
    emulator::counters().graphs++;
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    ENTER();
    return instantiate(exec, graph, flags);
}
API cuGraphInstantiate_v2(CUgraphExec* exec, CUgraph graph, CUgraphNode*, char*, size_t) {
    ENTER();
    return instantiate(exec, graph, 0);
}

API cuGraphExecDestroy(CUgraphExec exec) {
    ENTER();
    if (!state().graph_execs.count(exec)) return refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphExecDestroy: there is no such graph");
    drain_all();
    state().graph_execs.erase(exec);
    delete exec;
    return CUDA_SUCCESS;
}

API cuGraphUpload(CUgraphExec exec, CUstream stream) {
    ENTER();
    return state().graph_execs.count(exec) && stream_of(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    ENTER();
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!state().graph_execs.count(exec)) return refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphLaunch: there is no such graph");
    if (const CUresult result = not_capturing(stream, "cuGraphLaunch")) return result;
    const auto kernels =
        std::count_if(exec->nodes.begin(), exec->nodes.end(), [](const GraphNode& n) { return n.kind == NodeKind::kernel; });
    bool faults = false;
    if (const CUresult result = admit_kernels(uint64_t(kernels), &faults)) return result;
    emulator::counters().graph_launches++;
    if (faults) return submit(stream, {NodeKind::kernel, [] { return CUDA_ERROR_ILLEGAL_ADDRESS; }, nullptr});
    for (const GraphNode& node : exec->nodes) {
        if (const CUresult result = submit(stream, node)) return result;
    }
    return CUDA_SUCCESS;
}

// What a graph holds may change, not what it is: the same kinds of nodes in the same order.
static unsigned update(GraphExec* exec, const Graph* graph, CUgraphNode* different) {
    *different = nullptr;
    if (exec->nodes.size() != graph->nodes.size()) return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    for (size_t i = 0; i < exec->nodes.size(); i++) {
        if (exec->nodes[i].kind == graph->nodes[i].kind) continue;
        *different = const_cast<CUgraphNode>(&graph->nodes[i]);
        return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
    }
    exec->nodes = graph->nodes;
    return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

API cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo* info) {
    ENTER();
    if (!info || !state().graph_execs.count(exec) || !state().graphs.count(graph)) return CUDA_ERROR_INVALID_VALUE;
    *info = {};
    drain_all();
    info->result = update(exec, graph, &info->error_node);
    return info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS ? CUDA_SUCCESS
                                                        : refuse(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "the graph is another one");
}
API cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode* error_node, unsigned* result) {
    CUgraphExecUpdateResultInfo info{};
    const CUresult status = cuGraphExecUpdate_v2(exec, graph, &info);
    if (error_node) *error_node = info.error_node;
    if (result) *result = info.result;
    return status;
}
