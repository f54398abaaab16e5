// POST /predict: a picture as JSON, as float32 little-endian, or as JPEG.
#include "service.hpp"

#include <simdjson.h>
#include <turbojpeg.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace {

constexpr int kSide = 224, kChannels = 3, kPixels = kSide * kSide, kClasses = 1000;
constexpr float kMean[] = {0.485f, 0.456f, 0.406f}, kDeviation[] = {0.229f, 0.224f, 0.225f};  // ImageNet's

using Tensor = std::vector<float>;

Tensor read_json(std::string_view body) {
    thread_local simdjson::dom::parser parser;
    const auto wrong = [] { return Failure(422, "tensor: expected shape 1x3x224x224"); };
    try {
        const simdjson::dom::element document = parser.parse(body.data(), body.size());
        const simdjson::dom::array batch = document["tensor"].get_array();
        if (batch.size() != 1) throw wrong();
        const simdjson::dom::array planes = batch.at(0).get_array();
        if (planes.size() != kChannels) throw wrong();
        Tensor tensor;
        tensor.reserve(kChannels * kPixels);
        for (const simdjson::dom::array plane : planes) {
            if (plane.size() != kSide) throw wrong();
            for (const simdjson::dom::array row : plane) {
                if (row.size() != kSide) throw wrong();
                for (const double number : row) tensor.push_back(static_cast<float>(number));
            }
        }
        return tensor;
    } catch (const simdjson::simdjson_error& error) {
        throw Failure(422, error.what());
    }
}

Tensor read_binary(std::string_view body) {
    static_assert(std::endian::native == std::endian::little);
    if (body.size() != sizeof(float) * kChannels * kPixels) throw Failure(422, "expected 602112 bytes");
    Tensor tensor(kChannels * kPixels);
    std::memcpy(tensor.data(), body.data(), body.size());
    return tensor;
}

Tensor read_jpeg(std::string_view body) {
    struct Decoder {
        tjhandle handle = tjInitDecompress();
        ~Decoder() { tjDestroy(handle); }
    };
    thread_local Decoder decoder;
    const auto* bytes = reinterpret_cast<const unsigned char*>(body.data());
    int width, height, subsampling, colours;
    if (tjDecompressHeader3(decoder.handle, bytes, body.size(), &width, &height, &subsampling, &colours) != 0)
        throw Failure(422, tjGetErrorStr2(decoder.handle));
    if (width != kSide || height != kSide) throw Failure(422, "expected 224x224 pixels");
    std::vector<unsigned char> pixels(kChannels * kPixels);
    // TJFLAG_STOPONWARNING: a file that ends early is an error, not a grey patch.
    if (tjDecompress2(decoder.handle, bytes, body.size(), pixels.data(), kSide, 0, kSide, TJPF_RGB, TJFLAG_STOPONWARNING) != 0)
        throw Failure(422, tjGetErrorStr2(decoder.handle));
    Tensor tensor(kChannels * kPixels);
    for (int i = 0; i < kPixels; ++i)
        for (int c = 0; c < kChannels; ++c)
            tensor[c * kPixels + i] = (pixels[kChannels * i + c] / 255.0f - kMean[c]) / kDeviation[c];
    return tensor;
}

}  // namespace

std::string predict(std::string_view body, std::string_view content_type, const Model& model) {
    Tensor tensor;
    if (content_type == "application/json") {
        tensor = read_json(body);
    } else if (content_type == "application/octet-stream") {
        tensor = read_binary(body);
    } else if (content_type == "image/jpeg") {
        tensor = read_jpeg(body);
    } else {
        throw Failure(415, "expected application/json, application/octet-stream or image/jpeg");
    }
    std::array<float, kClasses> scores;
    model.run(tensor, std::array<int64_t, 4>{1, kChannels, kSide, kSide}, scores, std::array<int64_t, 2>{1, kClasses});
    const auto best = std::max_element(scores.begin(), scores.end());
    std::string json = R"({"class":)" + std::to_string(best - scores.begin()) + R"(,"score":)";
    append_number(json, *best);
    return json + "}";
}
