package main

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/gocore/internal/ort"
	"weir/gocore/internal/score"
)

// submission is one submitted call.
type submission struct {
	bound    *bound
	model    *ort.Model
	first, n int
	flags    score.Flags
	eventFD  int
}

// worker is the one thread that runs submitted calls, in order. It waits in a read, not at a channel: the kernel then wakes
// this very thread, where a goroutine would first have to wait for the scheduler, which a thread of the caller's that comes
// and goes does not hurry (docs/results/scorers.md).
var worker struct {
	mu    sync.Mutex
	wake  int // an eventfd; 0 before the first call
	queue []submission
}

// hand gives a call to the worker, which is started by the first one.
func hand(s submission) error {
	worker.mu.Lock()
	defer worker.mu.Unlock()
	if worker.wake == 0 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("no event descriptor for the worker: %w", err)
		}
		worker.wake = fd
		go work(fd)
	}
	worker.queue = append(worker.queue, s)
	return signal(worker.wake)
}

// signal adds 1 to an eventfd.
func signal(fd int) error {
	one := uint64(1)
	_, err := unix.Write(fd, unsafe.Slice((*byte)(unsafe.Pointer(&one)), 8))
	return err
}

func work(wake int) {
	runtime.LockOSThread()
	var count [8]byte
	for {
		if _, err := unix.Read(wake, count[:]); err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("reading the worker's event descriptor: %v", err))
		}
		worker.mu.Lock()
		queue := worker.queue
		worker.queue = nil
		worker.mu.Unlock()
		for i := range queue {
			queue[i].run()
		}
	}
}

// run makes the call and tells the caller's loop.
func (s *submission) run() {
	var err error
	func() {
		defer recovered(&err)
		err = s.bound.arena.RunClaimed(s.model, s.first, s.n, s.flags)
	}()
	s.bound.arena.Release()
	s.bound.mu.Lock()
	s.bound.job = job{finished, err}
	s.bound.mu.Unlock()
	_ = signal(s.eventFD) // it fails only if the caller gave something that takes no 8 bytes, and then nobody waits for them
	_ = unix.Close(s.eventFD)
}
