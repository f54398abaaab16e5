// Features from Postgres: libpq without blocking, a pool of connections, two queries a request.
#include "service.hpp"

#include <boost/asio/use_awaitable.hpp>
#include <boost/endian/conversion.hpp>

#include <cstring>
#include <utility>

namespace {

constexpr Oid kText = 25, kTextArray = 1009;
constexpr size_t kArrayHead = 20, kElementHead = 4;  // bytes of a one-dimensional array in binary, and before each element

struct Query {
    const char *name, *sql;
    Oid type;
};

constexpr Query kQueries[] = {
    {"card", "SELECT features FROM stack_cards WHERE card_id = $1", kText},
    {"merchant", "SELECT features FROM stack_merchants WHERE merchant_id = $1", kText},
    {"cards", "SELECT card_id, features FROM stack_cards WHERE card_id = ANY($1)", kTextArray},
    {"merchants", "SELECT merchant_id, features FROM stack_merchants WHERE merchant_id = ANY($1)", kTextArray},
};

void append_int(std::string& bytes, size_t number) {
    const auto big = boost::endian::native_to_big(static_cast<int32_t>(number));
    bytes.append(reinterpret_cast<const char*>(&big), sizeof big);
}

std::string text_array(const std::vector<std::string>& texts) {
    std::string bytes;
    for (size_t number : {size_t{1}, size_t{0}, size_t{kText}, texts.size(), size_t{1}}) append_int(bytes, number);
    for (const auto& text : texts) {
        append_int(bytes, text.size());
        bytes += text;
    }
    return bytes;
}

// Appends the floats of a real[] in binary.
void append_floats(std::vector<float>& into, const PGresult* result, int row, int column, int expected) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(PQgetvalue(result, row, column));
    const size_t wanted = kArrayHead + expected * (kElementHead + sizeof(float));
    if (static_cast<size_t>(PQgetlength(result, row, column)) != wanted) throw Failure(500, "features of another length");
    for (int i = 0; i < expected; ++i) {
        const auto* element = bytes + kArrayHead + i * (kElementHead + sizeof(float)) + kElementHead;
        const uint32_t bits = boost::endian::load_big_u32(element);
        float number;
        std::memcpy(&number, &bits, sizeof number);
        into.push_back(number);
    }
}

FeaturesById by_id(const PGresult* result, int expected) {
    FeaturesById found;
    for (int row = 0; row < PQntuples(result); ++row) {
        std::string id(PQgetvalue(result, row, 0), PQgetlength(result, row, 0));
        append_floats(found[std::move(id)], result, row, 1, expected);
    }
    return found;
}

}  // namespace

Connection::Connection(asio::io_context& context, const std::string& url)
    : connection_(PQconnectdb(url.c_str())), socket_(context) {
    if (PQstatus(connection_) != CONNECTION_OK) throw std::runtime_error(PQerrorMessage(connection_));
    for (const auto& query : kQueries) {
        Result done(PQprepare(connection_, query.name, query.sql, 1, &query.type), &PQclear);
        if (PQresultStatus(done.get()) != PGRES_COMMAND_OK) throw std::runtime_error(PQerrorMessage(connection_));
    }
    PQsetnonblocking(connection_, 1);
    socket_.assign(PQsocket(connection_));
}

Connection::~Connection() {
    socket_.release();  // libpq closes it
    PQfinish(connection_);
}

asio::awaitable<Result> Connection::query(const char* statement, std::string_view value) {
    const char* values[] = {value.data()};
    const int lengths[] = {static_cast<int>(value.size())}, binary[] = {1};
    if (!PQsendQueryPrepared(connection_, statement, 1, values, lengths, binary, 1))
        throw Failure(503, PQerrorMessage(connection_));
    while (PQflush(connection_) == 1) co_await socket_.async_wait(asio::posix::stream_descriptor::wait_write, asio::use_awaitable);
    Result last(nullptr, &PQclear);
    for (;;) {
        while (PQisBusy(connection_)) {
            co_await socket_.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
            if (!PQconsumeInput(connection_)) throw Failure(503, PQerrorMessage(connection_));
        }
        Result next(PQgetResult(connection_), &PQclear);
        if (!next) break;
        last = std::move(next);
    }
    if (PQresultStatus(last.get()) != PGRES_TUPLES_OK) throw Failure(503, PQerrorMessage(connection_));
    co_return last;
}

// A connection that goes back to the pool by itself.
class Database::Lease {
public:
    Lease(Database& database, Connection* connection) : database_(&database), connection_(connection) {}
    Lease(Lease&& other) noexcept : database_(other.database_), connection_(std::exchange(other.connection_, nullptr)) {}
    ~Lease() {
        if (connection_ != nullptr) database_->idle_.try_send(boost::system::error_code{}, connection_);
    }
    Connection* operator->() const { return connection_; }

private:
    Database* database_;
    Connection* connection_;
};

Database::Database(asio::io_context& context, const std::string& url, int size) : idle_(context, size) {
    for (int i = 0; i < size; ++i) {
        connections_.push_back(std::make_unique<Connection>(context, url));
        idle_.try_send(boost::system::error_code{}, connections_.back().get());
    }
}

asio::awaitable<Database::Lease> Database::lease() {
    co_return Lease(*this, co_await idle_.async_receive(asio::use_awaitable));
}

asio::awaitable<std::vector<float>> Database::vector(const std::string& card, const std::string& merchant) {
    std::vector<float> found;
    found.reserve(kFeatures);
    auto connection = co_await lease();
    auto result = co_await connection->query("card", card);
    if (PQntuples(result.get()) != 1) throw Failure(404, "no card " + card);
    append_floats(found, result.get(), 0, 0, kCard);
    result = co_await connection->query("merchant", merchant);
    if (PQntuples(result.get()) != 1) throw Failure(404, "no merchant " + merchant);
    append_floats(found, result.get(), 0, 0, kMerchant);
    co_return found;
}

asio::awaitable<std::vector<float>> Database::vectors(const std::vector<std::string>& cards,
                                                      const std::vector<std::string>& merchants) {
    FeaturesById of_cards, of_merchants;
    {
        auto connection = co_await lease();
        const auto card_ids = text_array(cards), merchant_ids = text_array(merchants);
        of_cards = by_id((co_await connection->query("cards", card_ids)).get(), kCard);
        of_merchants = by_id((co_await connection->query("merchants", merchant_ids)).get(), kMerchant);
    }
    std::vector<float> found;
    found.reserve(cards.size() * kFeatures);
    for (size_t row = 0; row < cards.size(); ++row) {
        const auto card = of_cards.find(cards[row]);
        if (card == of_cards.end()) throw Failure(404, "no card " + cards[row]);
        const auto merchant = of_merchants.find(merchants[row]);
        if (merchant == of_merchants.end()) throw Failure(404, "no merchant " + merchants[row]);
        found.insert(found.end(), card->second.begin(), card->second.end());
        found.insert(found.end(), merchant->second.begin(), merchant->second.end());
    }
    co_return found;
}
