// Streams and events.
#include <stdio.h>
#include <time.h>

#include <algorithm>

#include "driver.hpp"
#include "faults.hpp"

namespace driver {

static double now_ms() {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) / 1e6;
}

Stream* stream_of(CUstream handle) {
    State& s = state();
    const auto value = reinterpret_cast<uintptr_t>(handle);
    if (value <= 1) return &s.legacy;
    if (value == 2) return &s.per_thread;
    return s.streams.count(handle) ? handle : nullptr;
}

void drain(Stream* stream, uint64_t up_to) {
    State& s = state();
    while (stream->done < up_to && !stream->queue.empty()) {
        const auto work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        // After an error nothing more is done, as on a device.
        if (s.pending != CUDA_SUCCESS || s.lost) continue;
        const CUresult result = work();
        if (result != CUDA_SUCCESS && s.pending == CUDA_SUCCESS) s.pending = result;
    }
}

void drain_all() {
    State& s = state();
    drain(&s.legacy, s.legacy.given);
    drain(&s.per_thread, s.per_thread.given);
    for (Stream* stream : s.streams) drain(stream, stream->given);
}

// The legacy default stream and blocking streams wait for each other.
static void wait_for_others(Stream* stream) {
    State& s = state();
    if (stream == &s.legacy) {
        drain(&s.per_thread, s.per_thread.given);
        for (Stream* other : s.streams) {
            if (other->blocking) drain(other, other->given);
        }
    } else if (stream->blocking) {
        drain(&s.legacy, s.legacy.given);
    }
}

CUresult submit(Stream* stream, GraphNode node) {
    State& s = state();
    if (stream->capture) {
        Capture& capture = *stream->capture;
        if (capture.invalid) return refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "work on a stream whose capture is invalid");
        if (capture.origin != stream) capture.unjoined.insert(stream);
        capture.nodes.push_back(std::move(node));
        return CUDA_SUCCESS;
    }
    if (stream == &s.legacy) {
        for (const auto& capture : s.captures) {
            if (!capture->origin->blocking) continue;
            capture->invalid = true;
            return refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "work on the default stream while a stream that waits for it captures");
        }
    }
    wait_for_others(stream);
    stream->given++;
    stream->queue.push_back(std::move(node.run));
    if (!settings().lazy) drain(stream, stream->given);
    return CUDA_SUCCESS;
}

CUresult no_capture(const char* what) {
    CUresult result = CUDA_SUCCESS;
    for (const auto& capture : state().captures) {
        const bool ours = capture->thread == std::this_thread::get_id() && capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        if (!ours && capture->mode != CU_STREAM_CAPTURE_MODE_GLOBAL) continue;
        capture->invalid = true;
        result = refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while a stream captures", what);
    }
    return result;
}

CUresult not_capturing(Stream* stream, const char* what) {
    if (!stream->capture) return CUDA_SUCCESS;
    stream->capture->invalid = true;
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s on a stream that captures", what);
}

}  // namespace driver

using namespace driver;

static CUresult create_stream(CUstream* stream, unsigned flags, int priority) {
    if (!stream || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    auto* fresh = new Stream{flags == 0};
    fresh->flags = flags;
    fresh->priority = priority;
    state().streams.insert(fresh);
    emulator::counters().streams++;
    if (priority == -5) emulator::counters().highest_streams++;
    if (priority == 0) emulator::counters().lowest_streams++;
    *stream = fresh;
    return CUDA_SUCCESS;
}

API cuStreamCreate(CUstream* stream, unsigned flags) {
    ENTER();
    return create_stream(stream, flags, 0);
}
API cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
    ENTER();
    return create_stream(stream, flags, std::clamp(priority, -5, 0));
}

#define STREAM(NAME, HANDLE)                \
    Stream* const NAME = stream_of(HANDLE); \
    if (!NAME) return refuse(CUDA_ERROR_INVALID_HANDLE, "%s: there is no such stream", __func__)

API cuStreamDestroy_v2(CUstream handle) {
    ENTER();
    STREAM(stream, handle);
    State& s = state();
    if (stream == &s.legacy || stream == &s.per_thread) return CUDA_ERROR_INVALID_VALUE;
    if (stream->capture) stream->capture->invalid = true;
    drain(stream, stream->given);
    // A capture that loses its origin can never end.
    std::erase_if(s.captures, [&](const auto& capture) { return capture->origin == stream; });
    for (Event* event : s.events) {
        if (event->stream == stream) event->stream = nullptr;
    }
    s.streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
}

API cuStreamSynchronize(CUstream handle) {
    ENTER();
    STREAM(stream, handle);
    if (const CUresult result = not_capturing(stream, "cuStreamSynchronize")) return result;
    wait_for_others(stream);
    drain(stream, stream->given);
    return waited();
}

API cuStreamQuery(CUstream handle) {
    ENTER();
    STREAM(stream, handle);
    if (const CUresult result = not_capturing(stream, "cuStreamQuery")) return result;
    const bool complete = stream->done == stream->given;
    drain(stream, stream->given);
    return complete ? waited() : CUDA_ERROR_NOT_READY;
}

API cuStreamGetFlags(CUstream handle, unsigned* flags) {
    ENTER();
    STREAM(stream, handle);
    if (!flags) return CUDA_ERROR_INVALID_VALUE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}
API cuStreamGetPriority(CUstream handle, int* priority) {
    ENTER();
    STREAM(stream, handle);
    if (!priority) return CUDA_ERROR_INVALID_VALUE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
    ENTER();
    STREAM(stream, handle);
    State& s = state();
    if (!s.events.count(event)) return refuse(CUDA_ERROR_INVALID_HANDLE, "cuStreamWaitEvent: there is no such event");
    if (event->captured) {
        const std::shared_ptr<Capture> capture = event->capture.lock();
        if (!capture) return refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamWaitEvent: the event belongs to a capture that has ended");
        if (stream->capture && stream->capture != capture) {
            stream->capture->invalid = capture->invalid = true;
            return refuse(CUDA_ERROR_STREAM_CAPTURE_MERGE, "cuStreamWaitEvent would merge two captures");
        }
        if (stream == &s.legacy) return refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the default stream cannot join a capture");
        if (stream == capture->origin) {
            capture->unjoined.erase(event->stream);
        } else if (!stream->capture) {
            stream->capture = capture;
            capture->joined.insert(stream);
            capture->unjoined.insert(stream);
        }
        return CUDA_SUCCESS;
    }
    if (!event->recorded) return CUDA_SUCCESS;
    if (stream->capture) {
        stream->capture->invalid = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a stream that captures waits for an event recorded outside the capture");
    }
    Stream* const other = event->stream;
    if (!other || other == stream) return CUDA_SUCCESS;
    GraphNode node{NodeKind::empty,
                   [other, at = event->at] {
                       if (state().streams.count(other) || other == &state().legacy || other == &state().per_thread) drain(other, at);
                       return CUDA_SUCCESS;
                   },
                   nullptr};
    return submit(stream, std::move(node));
}

API cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
    ENTER();
    STREAM(stream, handle);
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, {NodeKind::host,
                           [function, data] {
                               function(data);
                               return CUDA_SUCCESS;
                           },
                           nullptr});
}

API cuEventCreate(CUevent* event, unsigned flags) {
    ENTER();
    if (!event || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    auto* fresh = new Event{(flags & 2) == 0};
    state().events.insert(fresh);
    emulator::counters().events++;
    *event = fresh;
    return CUDA_SUCCESS;
}

#define EVENT(HANDLE) \
    if (!state().events.count(HANDLE)) return refuse(CUDA_ERROR_INVALID_HANDLE, "%s: there is no such event", __func__)

API cuEventDestroy_v2(CUevent event) {
    ENTER();
    EVENT(event);
    // The record may still be queued.
    if (event->recorded && event->stream) drain(event->stream, event->at);
    state().events.erase(event);
    delete event;
    return CUDA_SUCCESS;
}

API cuEventRecord(CUevent event, CUstream handle) {
    ENTER();
    STREAM(stream, handle);
    EVENT(event);
    event->recorded = false;
    event->stream = stream;
    event->captured = stream->capture != nullptr;
    event->capture = stream->capture;
    if (stream->capture) return stream->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    const CUresult result = submit(stream, {NodeKind::empty,
                                            [event] {
                                                if (state().events.count(event)) event->time_ms = now_ms();
                                                return CUDA_SUCCESS;
                                            },
                                            nullptr});
    event->recorded = result == CUDA_SUCCESS;
    event->reported_unready = false;
    event->at = stream->given;
    return result;
}
API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned) { return cuEventRecord(event, stream); }

static CUresult not_captured(Event* event) {
    if (!event->captured) return CUDA_SUCCESS;
    if (const auto capture = event->capture.lock()) capture->invalid = true;
    return refuse(CUDA_ERROR_CAPTURED_EVENT, "waiting for an event that was recorded in a capture");
}

API cuEventSynchronize(CUevent event) {
    ENTER();
    EVENT(event);
    if (const CUresult result = not_captured(event)) return result;
    if (event->recorded && event->stream) drain(event->stream, event->at);
    return waited();
}

API cuEventQuery(CUevent event) {
    ENTER();
    EVENT(event);
    if (const CUresult result = not_captured(event)) return result;
    if (event->recorded && event->stream && event->stream->done < event->at) {
        // Not ready when first asked, so that nobody counts on it.
        if (!event->reported_unready) {
            event->reported_unready = true;
            return CUDA_ERROR_NOT_READY;
        }
        drain(event->stream, event->at);
    }
    return waited();
}

API cuEventElapsedTime(float* ms, CUevent start, CUevent end) {
    ENTER();
    EVENT(start);
    EVENT(end);
    if (!ms) return CUDA_ERROR_INVALID_VALUE;
    if (!start->timing || !end->timing || !start->recorded || !end->recorded) {
        return refuse(CUDA_ERROR_INVALID_HANDLE, "cuEventElapsedTime: an event without timing or that was not recorded");
    }
    for (Event* event : {start, end}) {
        if (event->stream && event->stream->done < event->at) return CUDA_ERROR_NOT_READY;
    }
    *ms = float(end->time_ms - start->time_ms);
    return CUDA_SUCCESS;
}
API cuEventElapsedTime_v2(float* ms, CUevent start, CUevent end) { return cuEventElapsedTime(ms, start, end); }
