// The scoring service as a C++ team would write it: Boost.Beast coroutines, libpq without blocking, onnxruntime's C API.
#include "service.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include <cstdlib>
#include <iostream>
#include <thread>

namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

namespace {

std::string setting(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr) throw std::runtime_error(std::string(name) + " is not set");
    return value;
}

struct Service {
    explicit Service(asio::io_context& context)
        : authorization("Bearer " + setting("STACK_KEY")),
          database(context, setting("STACK_DATABASE_URL"), std::stoi(setting("STACK_POOL"))),
          card(setting("STACK_MODEL"), "features", "risk"),
          image(setting("STACK_IMAGE_MODEL"), "image", "scores") {}

    std::string authorization;
    Database database;
    Model card, image;
};

// Compares in a time that does not tell how much of it is right.
bool same(std::string_view a, std::string_view b) {
    if (a.size() != b.size()) return false;
    unsigned char different = 0;
    for (size_t i = 0; i < a.size(); ++i) different |= static_cast<unsigned char>(a[i] ^ b[i]);
    return different == 0;
}

asio::awaitable<std::string> route(const Request& request, Service& service) {
    const std::string_view target = request.target();
    if (request.method() == http::verb::get && target == "/healthz") co_return R"({"status":"ok"})";
    if (request.method() != http::verb::post || (target != "/score" && target != "/score/batch" && target != "/predict"))
        throw Failure(404, "no such route");
    if (!same(request[http::field::authorization], service.authorization))
        throw Failure(401, "the API key is missing or wrong");
    if (target == "/score") co_return co_await score(request.body(), service.database, service.card);
    if (target == "/score/batch") co_return co_await score_batch(request.body(), service.database, service.card);
    co_return predict(request.body(), request[http::field::content_type], service.image);
}

asio::awaitable<Response> answer(const Request& request, Service& service) {
    Response response{http::status::ok, request.version()};
    response.set(http::field::content_type, "application/json");
    response.keep_alive(request.keep_alive());
    try {
        response.body() = co_await route(request, service);
    } catch (const std::exception& error) {
        const auto* failure = dynamic_cast<const Failure*>(&error);
        response.result(failure != nullptr ? failure->status : 500u);
        response.body() = R"({"detail":)";
        append_string(response.body(), error.what());
        response.body() += '}';
    }
    response.prepare_payload();
    co_return response;
}

asio::awaitable<void> session(tcp::socket socket, Service& service) {
    beast::flat_buffer buffer;
    try {
        socket.set_option(tcp::no_delay(true));
        for (;;) {
            http::request_parser<http::string_body> parser;
            parser.body_limit(kBodyBytesMax);
            co_await http::async_read(socket, buffer, parser, asio::use_awaitable);
            const Response response = co_await answer(parser.get(), service);
            co_await http::async_write(socket, response, asio::use_awaitable);
            if (!response.keep_alive()) break;
        }
    } catch (const boost::system::system_error&) {
        // the client has gone
    }
}

asio::awaitable<void> accept(tcp::acceptor acceptor, Service& service) {
    for (;;) {
        auto strand = asio::make_strand(acceptor.get_executor());
        auto socket = co_await acceptor.async_accept(strand, asio::use_awaitable);
        co_spawn(strand, session(std::move(socket), service), asio::detached);
    }
}

void serve() {
    const int workers = std::stoi(setting("STACK_WORKERS"));
    asio::io_context context(workers);
    Service service(context);
    const auto port = static_cast<unsigned short>(std::stoi(setting("STACK_PORT")));
    tcp::acceptor acceptor(context, {asio::ip::make_address(setting("STACK_HOST")), port});
    co_spawn(context, accept(std::move(acceptor), service), asio::detached);
    asio::signal_set signals(context, SIGINT, SIGTERM);
    signals.async_wait([&](auto, auto) { context.stop(); });
    std::vector<std::jthread> others;
    for (int i = 1; i < workers; ++i) others.emplace_back([&] { context.run(); });
    context.run();
    others.clear();
    std::quick_exit(0);  // requests that are being answered hold what would be destroyed
}

}  // namespace

int main() {
    try {
        serve();
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
