// Has C allocate, called from a goroutine's stack, and from Go that C has called.
package main

/*
#cgo CFLAGS: -O2 -fomit-frame-pointer -Wall -Werror
#include "work.h"
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
)

// Set by the linker where the program is made without names.
var nameless string

const blocks = 1000

//go:noinline
func allocate(size int) {
	C.c_malloc(C.size_t(size))
}

//go:noinline
func handle() {
	for size := 1; size <= blocks; size++ {
		allocate(size)
	}
}

//go:noinline
func nested(size C.size_t) {
	C.nested_malloc(size)
}

//export calledBack
func calledBack(size C.size_t) {
	nested(size)
}

//go:noinline
func isCalledBack() {
	for size := 1; size <= blocks; size++ {
		C.call_back(C.size_t(size))
	}
	C.call_back_from_thread(77)
}

// Has the runtime make all the threads that it will need, each of which allocates a few blocks: one for whatever may run at
// the same time, and some more for what waits in C. None of them ends before the program does.
func startThreads() {
	threads := runtime.GOMAXPROCS(0) + 4
	C.expect(C.int(threads))
	var met sync.WaitGroup
	met.Add(threads)
	for thread := 0; thread < threads; thread++ {
		go func() {
			C.meet()
			met.Done()
		}()
	}
	met.Wait()
}

func main() {
	startThreads()
	C.say_ready()
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		switch command, _, _ := strings.Cut(commands.Text(), " "); command {
		case "run":
			handle()
			if nameless == "" {
				isCalledBack()
			}
			C.say_done()
		case "ledger":
			C.say_ledger()
		case "chains":
			if nameless == "" {
				C.say_chains()
			}
			C.say_done()
		case "exit":
			C.say_done()
			return
		default:
			fmt.Fprintln(os.Stderr, "guest: unknown command")
			os.Exit(3)
		}
	}
}
