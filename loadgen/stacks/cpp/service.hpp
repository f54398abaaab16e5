// What the parts of the service share.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/experimental/concurrent_channel.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <libpq-fe.h>
#include <onnxruntime_c_api.h>

#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace asio = boost::asio;

constexpr int kCard = 30, kMerchant = 10, kFeatures = kCard + kMerchant;
constexpr size_t kBodyBytesMax = 16 << 20;

// A request that cannot be answered with 200.
struct Failure : std::runtime_error {
    Failure(unsigned status, const std::string& detail) : std::runtime_error(detail), status(status) {}
    unsigned status;
};

// A model with one input and one output, both float32. May be run by several threads at the same time.
class Model {
public:
    Model(const std::string& path, const char* input, const char* output);
    Model(const Model&) = delete;
    ~Model();
    void run(std::span<float> input, std::span<const int64_t> input_shape, std::span<float> output,
             std::span<const int64_t> output_shape) const;

private:
    const char *input_, *output_;
    OrtEnv* env_ = nullptr;
    OrtMemoryInfo* memory_ = nullptr;
    OrtSession* session_ = nullptr;
};

using Result = std::unique_ptr<PGresult, decltype(&PQclear)>;
using FeaturesById = std::unordered_map<std::string, std::vector<float>>;

// A connection with the four queries prepared. One coroutine uses it at a time.
class Connection {
public:
    Connection(asio::io_context& context, const std::string& url);
    ~Connection();
    asio::awaitable<Result> query(const char* statement, std::string_view value);  // value: binary text or text[]

private:
    PGconn* connection_;
    asio::posix::stream_descriptor socket_;
};

class Database {
public:
    Database(asio::io_context& context, const std::string& url, int size);
    // The feature vector of a card and a merchant; Failure 404 if there is no such one.
    asio::awaitable<std::vector<float>> vector(const std::string& card, const std::string& merchant);
    // The feature vectors of all rows, one after the other.
    asio::awaitable<std::vector<float>> vectors(const std::vector<std::string>& cards, const std::vector<std::string>& merchants);

private:
    class Lease;
    asio::awaitable<Lease> lease();

    std::vector<std::unique_ptr<Connection>> connections_;
    asio::experimental::concurrent_channel<void(boost::system::error_code, Connection*)> idle_;
};

// The routes: body in, JSON out, Failure where that cannot be.
asio::awaitable<std::string> score(std::string_view body, Database& database, const Model& model);
asio::awaitable<std::string> score_batch(std::string_view body, Database& database, const Model& model);
std::string predict(std::string_view body, std::string_view content_type, const Model& model);

void append_string(std::string& json, std::string_view text);  // quoted and escaped
void append_number(std::string& json, float number);           // the shortest that reads back as the same
