//! The other commands, on a real process and a real recording: `inspect`, `doctor`, `report`.

use std::fs;

use heaptap_tests::compile::{self, line_of};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recorded, Recording, path_str};
use heaptap_tests::text::changed_text;

fn record_every_function() -> Recorded {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let recorded = recording.finish();
    recorded.outcome.assert_success();
    guest.exit();
    recorded
}

#[test]
fn inspect_names_the_functions_and_attaches_nothing() {
    let guest = Guest::start("every-function");
    let outcome = heaptap::run(["inspect", "--pid", &guest.pid().to_string()]);
    outcome.assert_success();
    for function in [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "posix_memalign",
        "aligned_alloc",
        "memalign",
        "valloc",
        "pvalloc",
        "free",
        "cfree",
        "libc.so.6",
        "with --mmap: memory that the program maps itself",
        "mremap",
        "an allocator that is loaded is counted from then on: /",
    ] {
        assert!(outcome.stdout.contains(function), "no `{function}` in:\n{}", outcome.stdout);
    }
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "inspect has attached");
    guest.exit();
}

#[test]
fn inspect_says_which_instructions_a_gate_would_take_the_place_of() {
    let guest = Guest::start("every-function");
    let outcome = heaptap::run(["inspect", "--gate", "--pid", &guest.pid().to_string()]);
    outcome.assert_success();
    let lines: Vec<&str> = outcome.stdout.lines().map(str::trim).collect();
    assert!(lines.iter().any(|line| line.starts_with("could be gated: ")), "{}", outcome.stdout);
    for function in ["malloc ", "calloc ", "realloc ", "free, cfree "] {
        let covers = |line: &&&str| line.starts_with(function) && line.contains(" bytes at 0x");
        assert_eq!(lines.iter().filter(covers).count(), 1, "{function}: {}", outcome.stdout);
    }
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "inspect has written something");
    guest.exit();
}

#[test]
fn inspect_says_what_is_not_noticed_in_a_static_program() {
    let guest = Guest::start_program("mappings", &compile::linked_statically("mappings"));
    let outcome = heaptap::run(["inspect", "--pid", &guest.pid().to_string()]);
    outcome.assert_success();
    for said in [
        "there is no loader that tells of it",
        "does not tell where the data segment ends: there is no __curbrk in reach",
    ] {
        assert!(outcome.stdout.contains(said), "no `{said}` in:\n{}", outcome.stdout);
    }
    guest.exit();
}

#[test]
fn doctor_is_content_where_recording_works() {
    let outcome = heaptap::run(["doctor"]);
    outcome.assert_success();
    assert!(!outcome.stdout.is_empty(), "{outcome:#?}");
}

#[test]
fn record_ends_with_a_table_of_what_is_in_use_on_stdout() {
    let recorded = record_every_function();
    let table = &recorded.outcome.stdout;
    for column in ["flat", "flat%", "sum%", "cum", "cum%", "call_aligned_alloc", "main"] {
        assert!(table.contains(column), "no `{column}` in:\n{table}");
    }
}

#[test]
fn stderr_has_no_live_line_where_it_is_not_a_terminal() {
    let stderr = record_every_function().outcome.stderr;
    assert!(!stderr.contains('\r') && !stderr.contains('\x1b'), "{stderr:?}");
}

#[test]
fn a_saved_profile_is_reported_like_the_recording() {
    let recorded = record_every_function();
    let outcome = heaptap::run(["report", recorded.file()]);
    outcome.assert_success();
    assert!(outcome.stdout.contains("call_aligned_alloc"), "{outcome:#?}");
}

#[test]
fn report_by_lines_names_the_line_of_the_call() {
    let recorded = record_every_function();
    let outcome = heaptap::run(["report", recorded.file(), "--lines", "--sample-index", "alloc_space"]);
    outcome.assert_success();
    let call = "took(&call_aligned_alloc_site, aligned_alloc(alignment, size), size)";
    let place = format!("every-function.c:{}", line_of("every-function.c", call));
    assert!(outcome.stdout.contains(&place), "no {place} in:\n{}", outcome.stdout);
}

#[test]
fn report_folds_draws_trees_and_takes_differences() {
    let recorded = record_every_function();
    let file = recorded.file();
    let folded = heaptap::run(["report", file, "--folded"]);
    folded.assert_success();
    let line = folded.stdout.lines().find(|line| line.contains("call_aligned_alloc"));
    let line = line.unwrap_or_else(|| panic!("no site in:\n{}", folded.stdout));
    // Callers come first.
    assert!(line.contains("main;") && line.contains(";call_aligned_alloc "), "{line}");

    let tree = heaptap::run(["report", file, "--tree"]);
    tree.assert_success();
    assert!(tree.stdout.contains("call_aligned_alloc"), "{}", tree.stdout);

    let difference = heaptap::run(["report", file, "--base", file]);
    difference.assert_no_panic();
    assert!(
        !difference.stdout.contains("call_aligned_alloc"),
        "a profile differs from itself: {difference:#?}"
    );
}

#[test]
fn report_writes_a_flame_graph() {
    let recorded = record_every_function();
    let svg = recorded.path.with_file_name("flame.svg");
    heaptap::run(["report", recorded.file(), "--flamegraph", path_str(&svg)]).assert_success();
    let text = fs::read_to_string(&svg).unwrap_or_else(|err| panic!("no flame graph: {err}"));
    assert!(text.contains("<svg") && text.contains("call_aligned_alloc"), "{} bytes of SVG", text.len());
}

#[test]
fn the_kernel_side_logs_when_asked_to_and_only_then() {
    for (level, is_logged) in [("debug", true), ("info", false)] {
        let mut guest = Guest::start("abandoned");
        let recording = Recording::attach_with(guest.pid(), &["--log", level]);
        guest.command("run");
        let recorded = recording.finish();
        let stderr = &recorded.outcome.stderr;
        assert_eq!(stderr.contains("abandoned call of 1000 bytes in thread"), is_logged, "{level}: {stderr}");
        guest.exit();
    }
}

#[test]
fn an_allocator_that_is_not_probed_is_named_from_the_start_and_in_the_profile() {
    let mut guest = Guest::start("entered-midway");
    let mut recording = Recording::attach(guest.pid());
    let line = recording.stderr_line("heaptap: /");
    assert!(line.contains("entered-midway") && line.contains("malloc of its own"), "{line}");
    guest.command("run");
    let profile = recording.finish().profile();
    // It passes everything on to glibc's.
    guest.ledger().assert_equals(&profile);
    assert_eq!(profile.counter("unprobed_allocator"), 1, "{:#?}", profile.comments);
    guest.exit();
}
