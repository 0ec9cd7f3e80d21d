// A Go program: goroutines, channels, timers and a garbage collector at work over the checkpoint.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

// One worker's numbers: a chain of hashes over garbage that it makes itself.
func chain(seed uint64, steps int) [32]byte {
	var sum [32]byte
	binary.LittleEndian.PutUint64(sum[:], seed)
	for i := 0; i < steps; i++ {
		garbage := make([]byte, 1000+i%5000)
		copy(garbage, sum[:])
		garbage[len(garbage)-1] = byte(i)
		sum = sha256.Sum256(garbage)
	}
	return sum
}

func main() {
	if err := os.Chdir(os.Args[1]); err != nil {
		fmt.Println("BROKEN", err)
		os.Exit(2)
	}
	const workers, steps = 8, 300
	var rounds, ticks atomic.Int64
	var wrong atomic.Int64
	var done sync.WaitGroup
	stop := make(chan struct{})
	expected := make([][32]byte, workers)
	for w := range expected {
		expected[w] = chain(uint64(w), steps)
	}
	results := make(chan int)
	for w := 0; w < workers; w++ {
		done.Add(1)
		go func(w int) {
			defer done.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if chain(uint64(w), steps) != expected[w] {
					wrong.Add(1)
				}
				select {
				case results <- w:
				case <-stop:
					return
				}
			}
		}(w)
	}
	go func() {
		for range results {
			rounds.Add(1)
		}
	}()
	ticker := time.NewTicker(3 * time.Millisecond)
	go func() {
		for range ticker.C {
			ticks.Add(1)
		}
	}()
	go func() {
		for {
			runtime.GC()
			time.Sleep(10 * time.Millisecond)
		}
	}()
	for rounds.Load() < 20 || ticks.Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	pid := os.Getpid()
	fmt.Println("READY")
	os.WriteFile("ready", nil, 0o644)
	for !exists("go") {
		time.Sleep(5 * time.Millisecond)
	}
	rounds0, ticks0 := rounds.Load(), ticks.Load()
	for rounds.Load() < rounds0+20 || ticks.Load() < ticks0+5 {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	done.Wait()
	if os.Getenv("SUBJECT_SABOTAGE") != "" {
		wrong.Add(1)
	}
	if n := wrong.Load(); n != 0 || os.Getpid() != pid {
		fmt.Println("DIFF", n, "wrong results, pid", os.Getpid(), "instead of", pid)
		os.Exit(1)
	}
	fmt.Println("PASS")
}
