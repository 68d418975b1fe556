# Prints the program counter of every frame but those of inlined functions and of those that have jumped on, each as heaptap has it: behind the call, and
# also behind the instruction that a signal interrupted, or where the walk begins.
import gdb

frame, was_called = gdb.newest_frame(), False
while frame:
    if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
        print("frame %#x" % (frame.pc() + (not was_called)))
        was_called = frame.type() != gdb.SIGTRAMP_FRAME
    frame = frame.older()
