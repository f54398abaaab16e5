// POST /score and /score/batch.
#include "service.hpp"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>

namespace {

constexpr int64_t kAmountMax = 10'000'000'000;                  // minor units
constexpr int64_t kTsMin = 100'000'000'000, kTsMax = 1LL << 62;  // ms
constexpr size_t kIdLengthMax = 128, kBatchRowsMax = 1024;

struct Tx {
    std::string event_id, card_id, merchant_id;
};

std::string id_of(const simdjson::dom::object& object, const char* name) {
    const std::string_view id = object[name].get_string();
    const auto length = std::count_if(id.begin(), id.end(), [](unsigned char byte) { return (byte & 0xC0) != 0x80; });
    if (length < 1 || length > static_cast<ptrdiff_t>(kIdLengthMax))
        throw Failure(422, std::string(name) + ": expected 1 to 128 characters");
    return std::string(id);
}

void check_number(const simdjson::dom::object& object, const char* name, int64_t low, int64_t high) {
    const int64_t number = object[name].get_int64();
    if (number < low || number > high) throw Failure(422, std::string(name) + " is out of its range");
}

Tx read_tx(const simdjson::dom::element& element) {
    const simdjson::dom::object object = element.get_object();
    check_number(object, "amount", 0, kAmountMax);
    check_number(object, "ts", kTsMin, kTsMax);
    return {id_of(object, "event_id"), id_of(object, "card_id"), id_of(object, "merchant_id")};
}

std::vector<Tx> read(std::string_view body, bool batch) {
    thread_local simdjson::dom::parser parser;
    try {
        const simdjson::dom::element document = parser.parse(body.data(), body.size());
        if (!batch) return {read_tx(document)};
        std::vector<Tx> txs;
        for (const auto element : document.get_array()) {
            if (txs.size() == kBatchRowsMax) throw Failure(422, "more than 1024 rows");
            txs.push_back(read_tx(element));
        }
        if (txs.empty()) throw Failure(422, "no rows");
        return txs;
    } catch (const simdjson::simdjson_error& error) {
        throw Failure(422, error.what());
    }
}

void append_decision(std::string& json, const Tx& tx, float risk) {
    json += R"({"event_id":)";
    append_string(json, tx.event_id);
    json += R"(,"score":)";
    append_number(json, risk);
    json += R"(,"outcome":")";
    json += risk < 0.5f ? "approve" : risk < 0.9f ? "review" : "decline";
    json += "\"}";
}

}  // namespace

void append_string(std::string& json, std::string_view text) {
    json += '"';
    for (const char byte : text) {
        if (byte == '"' || byte == '\\') {
            json += '\\';
            json += byte;
        } else if (static_cast<unsigned char>(byte) < 0x20) {
            char escaped[8];
            std::snprintf(escaped, sizeof escaped, "\\u%04x", byte);
            json += escaped;
        } else {
            json += byte;
        }
    }
    json += '"';
}

void append_number(std::string& json, float number) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
    json.append(digits, end);
}

asio::awaitable<std::string> score(std::string_view body, Database& database, const Model& model) {
    const Tx tx = std::move(read(body, false).front());
    auto vector = co_await database.vector(tx.card_id, tx.merchant_id);
    float risk;
    model.run(vector, std::array<int64_t, 2>{1, kFeatures}, {&risk, 1}, std::array<int64_t, 1>{1});
    std::string json;
    append_decision(json, tx, risk);
    co_return json;
}

asio::awaitable<std::string> score_batch(std::string_view body, Database& database, const Model& model) {
    const auto txs = read(body, true);
    std::vector<std::string> cards, merchants;
    for (const auto& tx : txs) {
        cards.push_back(tx.card_id);
        merchants.push_back(tx.merchant_id);
    }
    auto vectors = co_await database.vectors(cards, merchants);
    const auto rows = static_cast<int64_t>(txs.size());
    std::vector<float> risks(txs.size());
    model.run(vectors, std::array<int64_t, 2>{rows, kFeatures}, risks, std::array<int64_t, 1>{rows});
    std::string json = "[";
    for (size_t row = 0; row < txs.size(); ++row) {
        if (row > 0) json += ',';
        append_decision(json, txs[row], risks[row]);
    }
    json += ']';
    co_return json;
}
