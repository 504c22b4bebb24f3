// Names and sentences of errors.
#include "driver.hpp"

namespace {

struct Named {
    CUresult error;
    const char *name, *text;
};
#define ERROR(NAME, TEXT) {NAME, #NAME, TEXT}
constexpr Named errors[] = {
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "an argument is out of range"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "the driver is not initialized"),
    ERROR(CUDA_ERROR_DEINITIALIZED, "the driver is shutting down"),
    ERROR(CUDA_ERROR_STUB_LIBRARY, "the library is a stub that holds no driver"),
    ERROR(CUDA_ERROR_DEVICE_UNAVAILABLE, "the device is not available"),
    ERROR(CUDA_ERROR_NO_DEVICE, "there is no CUDA device"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "there is no device of that number"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "the image is not a device image"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "the thread has no valid context"),
    ERROR(CUDA_ERROR_MAP_FAILED, "mapping failed"),
    ERROR(CUDA_ERROR_UNMAP_FAILED, "unmapping failed"),
    ERROR(CUDA_ERROR_ALREADY_MAPPED, "something is mapped there already"),
    ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "the image has no code for this device"),
    ERROR(CUDA_ERROR_NOT_MAPPED, "nothing is mapped there"),
    ERROR(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error"),
    ERROR(CUDA_ERROR_UNSUPPORTED_LIMIT, "the limit is not supported"),
    ERROR(CUDA_ERROR_INVALID_PTX, "the PTX could not be compiled"),
    ERROR(CUDA_ERROR_FILE_NOT_FOUND, "file not found"),
    ERROR(CUDA_ERROR_OPERATING_SYSTEM, "a call to the operating system failed"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "there is no such stream, event, module or function"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the object is not in a state that allows this"),
    ERROR(CUDA_ERROR_NOT_FOUND, "there is no symbol of that name"),
    ERROR(CUDA_ERROR_NOT_READY, "not ready yet"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "a kernel touched an illegal address"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources asked for a launch"),
    ERROR(CUDA_ERROR_LAUNCH_TIMEOUT, "a kernel ran for too long"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context is destroyed"),
    ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part of the host memory is registered already"),
    ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "the host memory is not registered"),
    ERROR(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "a kernel failed"),
    ERROR(CUDA_ERROR_NOT_PERMITTED, "not permitted"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "not supported"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not allowed while a stream captures"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture is invalid because of an earlier error"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "two captures would merge"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture did not begin on this stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "the capture has a fork that was not joined"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a dependency would cross the capture's border"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "an implicit dependency on the default stream while capturing"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread"),
    ERROR(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "the graph cannot be updated to that one"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};

const Named* find(CUresult error) {
    for (const Named& named : errors) {
        if (named.error == error) return &named;
    }
    return nullptr;
}

}  // namespace

API cuGetErrorName(CUresult error, const char** name) {
    const Named* named = find(error);
    if (!name) return CUDA_ERROR_INVALID_VALUE;
    *name = named ? named->name : nullptr;
    return named ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuGetErrorString(CUresult error, const char** text) {
    const Named* named = find(error);
    if (!text) return CUDA_ERROR_INVALID_VALUE;
    *text = named ? named->text : nullptr;
    return named ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
