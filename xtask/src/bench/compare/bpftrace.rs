//! A heap profiler in bpftrace's language, which keeps what heaptap does: every live block with its size and its stack,
//! and for each stack what was allocated and freed.

/// What the script says again and again.
pub(super) const COUNTS: &str = "counting";

/// Frames that bpftrace keeps of a stack, as many as heaptap does; one more and it refuses.
const FRAMES: u32 = 127;

/// Counts the calls of the allocator in a file. A call within a call of the same thread counts once, as the inner one.
pub(super) fn script(allocator: &str) -> String {
    let mut script = String::new();
    for (function, size) in [("malloc", "arg0"), ("calloc", "arg0 * arg1"), ("realloc", "arg1")] {
        script += &format!("uprobe:{allocator}:{function} {{\n");
        if function == "realloc" {
            script += FREE;
        }
        script += &format!("  @asked[tid] = {size};\n  @from[tid] = ustack({FRAMES});\n}}\n");
        script += &format!("uretprobe:{allocator}:{function} /@asked[tid]/ {{\n{ALLOCATE}}}\n");
    }
    script += &format!("uprobe:{allocator}:free {{\n{FREE}}}\n");
    script += &format!("interval:ms:100 {{ printf(\"{COUNTS}\\n\"); }}\n");
    // A profile is what the stacks have come to; the rest would be printed as well.
    script += "END { clear(@asked); clear(@from); clear(@size); clear(@stack); }\n";
    script
}

const ALLOCATE: &str = "  if (retval) {
    @alloc_objects[@from[tid]] = count();
    @alloc_bytes[@from[tid]] = sum(@asked[tid]);
    @size[retval] = @asked[tid];
    @stack[retval] = @from[tid];
  }
  delete(@asked[tid]);
";

const FREE: &str = "  if (@size[arg0]) {
    @free_objects[@stack[arg0]] = count();
    @free_bytes[@stack[arg0]] = sum(@size[arg0]);
    delete(@size[arg0]);
    delete(@stack[arg0]);
  }
";

/// The file of the allocator that a process uses, by what it has mapped.
pub(super) fn allocator(maps: &str) -> Option<&str> {
    let file = |name: &str| {
        let paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
        paths.into_iter().find(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with(name)))
    };
    file("libjemalloc.so").or_else(|| file("libc.so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_that_stands_before_the_c_librarys_is_found() {
        let libc = "7f00-7f10 r-xp 00000000 fe:00 9    /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        let jemalloc = "7f20-7f30 r-xp 00000000 fe:00 7    /usr/lib/x86_64-linux-gnu/libjemalloc.so.2\n";
        assert_eq!(allocator(libc), Some("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(
            allocator(&format!("{libc}{jemalloc}")),
            Some("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
        );
        assert_eq!(allocator("7f00-7f10 rw-p 00000000 00:00 0\n"), None);
    }

    #[test]
    fn every_function_is_in_the_script() {
        let script = script("/libc.so.6");
        for function in ["malloc", "calloc", "realloc", "free"] {
            assert!(script.contains(&format!("uprobe:/libc.so.6:{function} {{")), "{script}");
        }
    }
}
