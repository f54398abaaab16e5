// The scoring service as a Go team would write it: net/http, a pgx pool, onnxruntime through cgo. No tiers, no state.
package main

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	ort "github.com/yalue/onnxruntime_go"
)

const (
	bodyBytesMax      = 16 << 20 // a picture as a JSON tensor is 2 to 3 MB
	readHeaderTimeout = 10 * time.Second
	stopTimeout       = 5 * time.Second
)

type server struct {
	key   []byte
	pool  *pgxpool.Pool
	cards *cardModel
	image *imageModel
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	workers, err := strconv.Atoi(os.Getenv("STACK_WORKERS"))
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(workers)

	program, err := os.Executable()
	if err != nil {
		return err
	}
	ort.SetSharedLibraryPath(filepath.Join(filepath.Dir(program), "libonnxruntime.so"))
	if err := ort.InitializeEnvironment(); err != nil {
		return err
	}
	defer ort.DestroyEnvironment()

	s := &server{key: []byte(os.Getenv("STACK_KEY"))}
	if s.pool, err = openPool(ctx); err != nil {
		return err
	}
	defer s.pool.Close()
	if s.cards, err = openCardModel(os.Getenv("STACK_MODEL")); err != nil {
		return err
	}
	if s.image, err = openImageModel(os.Getenv("STACK_IMAGE_MODEL")); err != nil {
		return err
	}
	return s.serve(ctx)
}

func openPool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("STACK_DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	size, err := strconv.Atoi(os.Getenv("STACK_POOL"))
	if err != nil {
		return nil, err
	}
	config.MaxConns, config.MinConns = int32(size), int32(size)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return pool, pool.Ping(ctx)
}

func (s *server) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("POST /score", s.withKey(s.score))
	mux.HandleFunc("POST /score/batch", s.withKey(s.scoreBatch))
	mux.HandleFunc("POST /predict", s.withKey(s.predict))

	listener, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("STACK_HOST"), os.Getenv("STACK_PORT")))
	if err != nil {
		return err
	}
	web := &http.Server{Handler: mux, ReadHeaderTimeout: readHeaderTimeout}
	go func() {
		<-ctx.Done()
		deadline, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		web.Shutdown(deadline)
	}()
	if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// withKey lets through who carries the API key.
func (s *server) withKey(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !found || subtle.ConstantTimeCompare([]byte(key), s.key) != 1 {
			fail(w, http.StatusUnauthorized, "the API key is missing or wrong")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, bodyBytesMax)
		next(w, r)
	}
}

func reply(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

func fail(w http.ResponseWriter, status int, detail string) {
	reply(w, status, map[string]string{"detail": detail})
}
