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
	"strings"
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

func main() {
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
