// onnxruntime through its C API.
#include "service.hpp"

namespace {

const OrtApi& api() {
    static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    return *found;
}

void check(OrtStatus* status) {
    if (status == nullptr) return;
    std::string message = api().GetErrorMessage(status);
    api().ReleaseStatus(status);
    throw std::runtime_error(message);
}

using Value = std::unique_ptr<OrtValue, void (*)(OrtValue*)>;

Value wrap(OrtMemoryInfo* memory, std::span<float> data, std::span<const int64_t> shape) {
    OrtValue* value = nullptr;
    check(api().CreateTensorWithDataAsOrtValue(memory, data.data(), data.size_bytes(), shape.data(), shape.size(),
                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    return {value, [](OrtValue* v) { api().ReleaseValue(v); }};
}

}  // namespace

Model::Model(const std::string& path, const char* input, const char* output) : input_(input), output_(output) {
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
        throw std::runtime_error("libonnxruntime is older than the header that this was built with");
    check(api().CreateEnv(ORT_LOGGING_LEVEL_WARNING, "stack", &env_));
    check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
    OrtSessionOptions* options = nullptr;
    check(api().CreateSessionOptions(&options));
    check(api().SetIntraOpNumThreads(options, 1));  // a run stays on the thread that asks
    OrtStatus* status = api().CreateSession(env_, path.c_str(), options, &session_);
    api().ReleaseSessionOptions(options);
    check(status);
}

Model::~Model() {
    api().ReleaseSession(session_);
    api().ReleaseMemoryInfo(memory_);
    api().ReleaseEnv(env_);
}

void Model::run(std::span<float> input, std::span<const int64_t> input_shape, std::span<float> output,
                std::span<const int64_t> output_shape) const {
    Value in = wrap(memory_, input, input_shape), out = wrap(memory_, output, output_shape);
    const OrtValue* inputs[] = {in.get()};
    OrtValue* outputs[] = {out.get()};
    check(api().Run(session_, nullptr, &input_, inputs, 1, &output_, 1, outputs));
}
