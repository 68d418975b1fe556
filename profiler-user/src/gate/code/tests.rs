//! Gates are run, and compared with a model that does the same in Rust.

use std::sync::atomic::{AtomicU64, Ordering};

use profiler_common::{
    call::{Outcome, Shape},
    heap::{class_limit_bytes, size_class},
};

use super::{
    Budget, CodeError, Setting, Stop, Throws, assemble,
    bench::{Bench, GATES_AT},
    model::{Lot, Model},
    scratch::{self, Answered, Seen, answer_with},
};
use crate::{
    gate::{
        gaps::{self, GAPS},
        layout::{BUDGET_BYTES, BUDGETS, CHARGE_BYTES, Layout, SLOTS},
    },
    numbers::Numbers,
};

/// Where the budget of this thread is: the one that a call changes.
fn budget_of(bench: &Bench, shape: Shape, place: usize) -> u64 {
    assert_eq!(shape, Shape::Size, "a call that charges something");
    let layout = bench.setting.layout;
    let budgets = || (0..BUDGETS).map(|budget| layout.budgets() + budget * BUDGET_BYTES);
    // So that nothing is sampled by it.
    for budget in budgets() {
        bench.data.write(budget, &(1_i64 << 40).to_le_bytes());
    }
    answer_with(0);
    scratch::call(bench.entry(place), [100, 0, 0, 0]);
    scratch::answered();
    let changed: Vec<u64> = budgets().filter(|budget| bench.data.word(*budget) != 1 << 40).collect();
    let [budget] = *changed else { panic!("{changed:?}") };
    assert_eq!(bench.data.word(budget), (1 << 40) - 100 - CHARGE_BYTES as u64);
    for budget in budgets() {
        bench.data.write(budget, &[0; 16]);
    }
    budget
}

const SHAPES: [Shape; 16] = [
    Shape::Size,
    Shape::CountSize,
    Shape::AlignSize,
    Shape::HeapCountSize,
    Shape::OutAlignSize,
    Shape::Resize,
    Shape::ResizeCount,
    Shape::HeapResize,
    Shape::HeapResizeCount,
    Shape::ResizeOrFree,
    Shape::HeapResizeOrFree,
    Shape::Extend,
    Shape::Expand,
    Shape::Free,
    Shape::Size,
    Shape::Free,
];

/// A size as calls have it, and now and then one that none has.
fn size(numbers: &mut Numbers) -> u64 {
    match numbers.below(40) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << 63,
        3 => numbers.next(),
        _ => numbers.below(300),
    }
}

/// So many blocks side by side.
fn blocks(count: u64) -> Vec<u64> {
    (0..count).map(|index| 0x7f00_0000_1000 + 16 * index).collect()
}

/// What there was to compare.
struct Compared {
    stops: usize,
    overflows: u64,
}

/// Runs calls at random on few blocks, so that they meet again; what they see, give and leave has to be what the model says.
fn compare(seed: u64, budget: Budget, layout: Layout, blocks: &[u64], interval_bytes: u64) -> Compared {
    let mut numbers = Numbers(seed);
    let bench = Bench::new(&SHAPES, &mut numbers, budget, layout, interval_bytes);
    let budget_at = budget_of(&bench, Shape::Size, 0);
    let mut model = Model::of(&bench);
    let mut stops = 0;
    for _ in 0..4_000 {
        let place = usize::try_from(numbers.below(SHAPES.len() as u64)).unwrap();
        let shape = SHAPES[place];
        let block = |numbers: &mut Numbers| match numbers.below(12) {
            0 => 0,
            _ => blocks[usize::try_from(numbers.below(blocks.len() as u64)).unwrap()],
        };
        let mut arguments = [0; 4].map(|_: u64| numbers.next());
        let mut stored = 0;
        let mut result = block(&mut numbers);
        if let Some(convention) = shape.convention() {
            let mut put = |number: u64, value: u64| {
                if let Some(place) = usize::try_from(number).ok().and_then(|number| number.checked_sub(1)) {
                    arguments[place] = value;
                }
            };
            put(convention.size_argument(), size(&mut numbers));
            put(convention.count_argument(), numbers.below(8));
            put(convention.out_argument(), &raw mut stored as u64);
            put(convention.old_argument(), block(&mut numbers));
            if convention.outcome() == Outcome::Stored as u64 {
                stored = std::mem::replace(&mut result, numbers.below(2) * 12);
            }
            if convention.outcome() == Outcome::Size as u64 {
                result = numbers.below(400);
            }
        } else {
            arguments[0] = block(&mut numbers);
        }
        let lot = model.call(shape, arguments, result, stored);
        answer_with(result);
        let back = scratch::call(bench.entry(place), arguments);
        let what = format!("{shape:?} {arguments:x?} {result:x}: {lot:x?}");
        assert_eq!((back.rax, back.kept), (result, scratch::KEPT), "{what}");
        assert_eq!(back.rsp[0], back.rsp[1], "{what}: the stack is as it was");
        let answered = scratch::answered();
        let [answered] = *answered else { panic!("{what}: {answered:x?}") };
        assert_eq!(answered.arguments, arguments, "{what}");
        assert_eq!(answered.rsp % 16, 8, "{what}: the stack as a function wants it");
        let seen = scratch::seen();
        let is_free = shape.convention().is_none();
        match (lot, &*seen) {
            (Lot::Through, []) => {}
            (Lot::Stops(_), [free]) if is_free => {
                assert_eq!((free.address, free.rsp), (bench.site(place, Stop::Free), back.rsp[0]), "{what}");
                assert_eq!(free.arguments, arguments, "{what}");
            }
            (Lot::Stops(had), [whole]) => {
                let convention = shape.convention().expect("it gives a block");
                let place_of = bench.site(place, Stop::Whole);
                assert_eq!((whole.address, whole.rsp, whole.rax), (place_of, back.rsp[0], result), "{what}");
                assert_eq!(whole.r11, had, "{what}");
                for argument in
                    [convention.size_argument(), convention.count_argument(), convention.out_argument()]
                {
                    let at = usize::try_from(argument).unwrap().saturating_sub(1);
                    assert!(argument == 0 || whole.arguments[at] == arguments[at], "{what}");
                }
                assert_finds_the_caller(&bench, &answered, &what);
            }
            (Lot::Stops(had), [call, returned]) => {
                assert_eq!((call.address, call.rsp), (bench.site(place, Stop::Call), back.rsp[0]), "{what}");
                assert_eq!((call.arguments, call.r11), (arguments, had), "{what}");
                let Seen { address, rsp, rax, .. } = *returned;
                assert_eq!(
                    (address, rsp, rax),
                    (bench.site(place, Stop::Return), back.rsp[0], result),
                    "{what}"
                );
                assert_finds_the_caller(&bench, &answered, &what);
            }
            other => panic!("{what}: {other:x?}"),
        }
        stops += seen.len();
    }
    model.assert_equals(&bench, budget_at);
    Compared { stops, overflows: model.overflows }
}

/// While a function is called by a gate, whoever walks the stack finds the gate's caller.
#[track_caller]
fn assert_finds_the_caller(bench: &Bench, answered: &Answered, what: &str) {
    let gate = bench.gates.frames.iter().find(|frame| frame.return_address == answered.words[0]);
    let caller = scratch::caller_of(gate.expect(what), answered);
    assert!(!scratch::is_in(&bench.gates, bench.setting.code_address, caller), "{what}");
}

/// Otherwise two calls for more than there can be could make a budget large that is used up.
#[test]
fn what_asks_for_more_than_there_can_be_is_charged_no_more_than_that() {
    let mut numbers = Numbers(5);
    let layout = Layout::for_blocks(0);
    let shapes = [Shape::Size, Shape::CountSize];
    let bench = Bench::new(&shapes, &mut numbers, Budget::OfThread, layout, 1);
    let budget = budget_of(&bench, Shape::Size, 0);
    let most = 1_i64 << 46;
    for (size, charged) in [
        ((1 << 31) - 17, (1 << 31) - 1),
        ((1 << 31) - 16, 1 << 31),
        ((1 << 40) - 16, 1 << 40),
        ((1 << 46) - 16, most),
        (1 << 46, most),
        (i64::MAX as u64 - 4096, most),
        (i64::MAX as u64, most),
        (1 << 63, most),
        (u64::MAX - 16, most),
        (u64::MAX - 15, 0),
    ] {
        for (place, arguments) in [(0, [size, 0, 0, 0]), (1, [1, size, 0, 0])] {
            bench.data.write(budget, &(1_i64 << 62).to_le_bytes());
            answer_with(0);
            scratch::call(bench.entry(place), arguments);
            assert_eq!((1_i64 << 62) - bench.data.word(budget).cast_signed(), charged, "{size:#x}");
        }
    }
    assert_eq!(scratch::seen(), []);
    scratch::answered();
}

#[test]
fn gates_do_what_the_model_does_by_thread() {
    for seed in 1..=20 {
        let compared = compare(seed, Budget::OfThread, Layout::for_blocks(0), &blocks(200), 2_000);
        assert!(compared.stops > 500, "{}", compared.stops);
    }
}

#[test]
fn gates_do_what_the_model_does_where_buckets_overflow() {
    let layout = Layout::for_blocks(0);
    // More than two buckets have room for.
    let crowded = |block: &u64| layout.bucket_of(*block) < 2;
    let blocks: Vec<u64> = blocks(1 << 18).into_iter().filter(crowded).collect();
    assert!(blocks.len() > 20, "{}", blocks.len());
    for seed in 1..=10 {
        // Every call is in the sample.
        let compared = compare(seed, Budget::OfThread, layout, &blocks, 1);
        assert!(compared.overflows > 10, "{}", compared.overflows);
    }
}

#[test]
fn gates_do_what_the_model_does_by_processor() {
    // SAFETY: the name is a string that ends.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    // glibc has it since 2.35; where it is older, nothing is to be tested.
    let Some(offset) = std::ptr::NonNull::new(offset.cast::<isize>()) else { return };
    // SAFETY: it is a variable of this type (sys/rseq.h).
    let offset = i32::try_from(unsafe { offset.read() }).unwrap();
    stay_on_this_cpu();
    for seed in 1..=20 {
        let compared = compare(seed, Budget::OfCpu { offset }, Layout::for_blocks(0), &blocks(200), 2_000);
        assert!(compared.stops > 500, "{}", compared.stops);
    }
}

/// Otherwise the budget would be another one now and then.
fn stay_on_this_cpu() {
    // SAFETY: it takes nothing.
    let cpu = usize::try_from(unsafe { libc::sched_getcpu() }).unwrap();
    // SAFETY: a set of bits, for which zeros are valid.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a processor that there is has a bit.
    unsafe { libc::CPU_SET(cpu, &mut cpus) };
    // SAFETY: the call reads no more than the set.
    let set = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus) };
    assert_eq!(set, 0);
}

/// All blocks of a size class are to have the same chance, which is known: what the budget had says where in the block the first
/// sampled byte lies, and those blocks count in which it lies among as many bytes as the smallest of the class is charged.
#[test]
fn blocks_of_a_class_are_sampled_alike() {
    let mut numbers = Numbers(7);
    let interval_bytes = 4_000;
    let layout = Layout::for_blocks(0);
    let bench = Bench::new(&[Shape::Size], &mut numbers, Budget::OfThread, layout, interval_bytes);
    budget_of(&bench, Shape::Size, 0);
    for (class, calls) in [(0, 20_000), (9, 20_000), (25, 6_000), (40, 500)] {
        let smallest = if class == 0 { 0 } else { class_limit_bytes(class - 1) + 1 };
        let charged = smallest + CHARGE_BYTES as u64;
        let mut kept = 0;
        for _ in 0..calls {
            let size = smallest + numbers.below(class_limit_bytes(class) - smallest + 1);
            assert_eq!(size_class(size), class);
            answer_with(0);
            scratch::call(bench.entry(0), [size, 0, 0, 0]);
            let stops = scratch::seen();
            assert!(stops.iter().all(|stop| stop.r11 < charged), "{size}: {stops:x?}");
            kept += stops.len();
            // As the profiler does it: no gap is used twice.
            let gap = numbers.below(GAPS as u64);
            let fresh = gaps::draw(interval_bytes, || numbers.next())[0];
            bench.data.write(layout.gaps() + 8 * gap, &fresh.to_le_bytes());
        }
        scratch::answered();
        let chance = -(-(charged as f64) / interval_bytes as f64).exp_m1();
        let (expected, calls) = (chance * f64::from(calls), f64::from(calls));
        let error = (calls * chance * (1.0 - chance)).sqrt();
        assert!(
            (kept as f64 - expected).abs() < 4.5 * error + 1e-9,
            "class {class}: {kept}, not {expected} ± {error}"
        );
    }
}

/// The first of two functions of a shape may throw, and the other one is its counterpart.
fn throwing(shape: Shape, jumps: bool, arguments: u8, interval_bytes: u64) -> Bench {
    let mut numbers = Numbers(3);
    let layout = Layout::for_blocks(0);
    let mut bench = Bench::new(&[shape, shape], &mut numbers, Budget::OfThread, layout, interval_bytes);
    let gives_size = shape == Shape::Size;
    bench.functions[0].throws = Throws::Unless { counterpart: 1, arguments, gives_size };
    bench.functions[0].jumps = jumps;
    bench.gates = assemble(&bench.functions, &bench.setting).unwrap();
    bench.code.write(GATES_AT, &bench.gates.bytes);
    bench.open();
    bench
}

/// Panics unless the first function has come by these stops since this was last asked, and nobody is inside of its gate.
#[track_caller]
fn assert_stopped(bench: &Bench, stops: &[Stop]) {
    let seen: Vec<u64> = scratch::seen().iter().map(|seen| seen.address).collect();
    let expected: Vec<u64> = stops.iter().map(|stop| bench.site(0, *stop)).collect();
    assert_eq!(seen, expected);
    assert_eq!(bench.data.word(bench.setting.layout.inside()), 0);
}

/// Has the first function of [`throwing`] called where its counterpart has no memory: it is asked itself, with what its caller gave it, and
/// returns to that.
#[track_caller]
fn assert_thrown(bench: &Bench, arguments: [u64; 4], stops: &[Stop]) {
    answer_with(0x4560);
    answer_with(0);
    let back = scratch::call(bench.entry(0), arguments);
    assert_eq!((back.rax, back.kept, back.rsp[0]), (0x4560, scratch::KEPT, back.rsp[1]));
    let [other, own] = *scratch::answered() else { panic!("both were called") };
    assert!(scratch::is_in(&bench.gates, bench.setting.code_address, other.words[0]));
    let resizes = bench.functions[0].shape.convention().unwrap().old_argument() != 0;
    // What resizes has no fourth argument.
    let given = if resizes { 3 } else { 4 };
    assert_eq!((&own.arguments[..given], own.rsp), (&arguments[..given], back.rsp[0]));
    assert_stopped(bench, stops);
}

/// Has it called where there is memory: the other one gives it, and its own gate sees nothing of that.
#[track_caller]
fn assert_given(bench: &Bench, arguments: [u64; 4], one_more: usize, stops: &[Stop]) {
    answer_with(0x1230);
    let back = scratch::call(bench.entry(0), arguments);
    assert_eq!((back.rax, back.kept, back.rsp[0]), (0x1230, scratch::KEPT, back.rsp[1]));
    let [answered] = *scratch::answered() else { panic!("it was called once") };
    if let Throws::Unless { gives_size: true, .. } = bench.functions[0].throws {
        assert_eq!(back.rdx, arguments[0]);
    }
    let mut expected = arguments;
    expected[one_more] = bench.setting.data_address;
    assert_eq!(answered.arguments, expected);
    let gate = bench.gates.frames.iter().find(|frame| frame.return_address == answered.words[0]).unwrap();
    let caller = scratch::caller_of(gate, &answered);
    assert!(!scratch::is_in(&bench.gates, bench.setting.code_address, caller));
    assert_stopped(bench, stops);
}

/// A function that throws where there is no memory is called by the gate only if it will not.
#[test]
fn nothing_of_the_gate_is_on_the_stack_of_a_function_that_throws() {
    for jumps in [false, true] {
        let bench = throwing(Shape::Size, jumps, 1, 1);
        assert_given(&bench, [64, 2, 3, 4], 1, &[Stop::Whole]);
        let lost = bench.setting.layout.lost_budgets();
        assert_eq!(bench.data.word(lost), 0);
        // It is not seen, whether it throws or has some memory after all, but that is told.
        assert_thrown(&bench, [64, 2, 3, 4], &[]);
        assert_eq!(bench.data.word(lost), 1);
    }
    let bench = throwing(Shape::HeapCountSize, false, 3, 1);
    assert_given(&bench, [1, 2, 32, 4], 3, &[Stop::Whole]);
    assert_thrown(&bench, [1, 2, 32, 4], &[]);
}

/// Where it may jump to another function, that has to find the gate on the stack, also of a call in no sample.
#[test]
fn a_function_that_throws_and_jumps_is_not_called_by_the_gate_in_no_sample_either() {
    let bench = throwing(Shape::Size, true, 1, 1 << 40);
    let budgets = (0..BUDGETS).map(|budget| bench.setting.layout.budgets() + budget * BUDGET_BYTES);
    for budget in budgets {
        bench.data.write(budget, &(1_i64 << 40).to_le_bytes());
    }
    assert_given(&bench, [64, 2, 3, 4], 1, &[]);
    assert_thrown(&bench, [64, 2, 3, 4], &[]);
}

/// What it resizes is as it was where there is no memory, in the table as well.
#[test]
fn a_function_that_throws_and_resizes_fails_first_as_its_counterpart_does() {
    let both = [Stop::Call, Stop::Return];
    for (shape, arguments, one_more) in
        [(Shape::Resize, [0x1230, 64, 3, 4], 2), (Shape::ResizeCount, [0x1230, 4, 16, 4], 3)]
    {
        for jumps in [false, true] {
            let bench = throwing(shape, jumps, one_more, 1);
            let in_table = |block: u64| {
                let layout = bench.setting.layout;
                let bucket = layout.table() + layout.bucket_of(block) * SLOTS * 8;
                (0..SLOTS).any(|slot| bench.data.word(bucket + 8 * slot) == block)
            };
            assert_given(&bench, arguments, one_more.into(), &both);
            assert!(in_table(0x1230));
            // It fails, and the block is in the sample still, while the function itself is asked.
            assert_thrown(&bench, arguments, &both);
            assert!(in_table(0x1230) && !in_table(0x4560));
            // To no size it may have freed the block, and is not asked again.
            let mut none = arguments;
            none[1] = 0;
            answer_with(0);
            assert_eq!(scratch::call(bench.entry(0), none).rax, 0);
            assert_eq!(scratch::answered().len(), 1);
            assert_eq!(scratch::seen().len(), 2);
            assert!(!in_table(0x1230));
        }
    }
}

#[test]
fn what_has_no_counterpart_or_gives_no_block_has_no_gate() {
    let mut numbers = Numbers(3);
    let bench =
        Bench::new(&[Shape::Size, Shape::Free], &mut numbers, Budget::OfThread, Layout::for_blocks(0), 1);
    let with = |throws, shape| {
        let mut functions = bench.functions.clone();
        (functions[0].throws, functions[0].shape) = (throws, shape);
        functions[0].jumps = false;
        assemble(&functions, &bench.setting)
    };
    for counterpart in [0, 1, 2] {
        let throws = Throws::Unless { counterpart, arguments: 1, gives_size: false };
        assert!(matches!(with(throws, Shape::Size), Err(CodeError::Throws { .. })), "{counterpart}");
    }
    // How they fail is not told by null alone, or takes more arguments than are kept.
    for shape in [Shape::ResizeOrFree, Shape::Extend, Shape::Expand, Shape::HeapResizeCount] {
        let mut functions = vec![bench.functions[0].clone(), bench.functions[0].clone()];
        (functions[0].shape, functions[1].shape) = (shape, shape);
        functions[0].throws = Throws::Unless { counterpart: 1, arguments: 3, gives_size: false };
        assert!(matches!(assemble(&functions, &bench.setting), Err(CodeError::Throws { .. })), "{shape:?}");
    }
    // Nothing that resizes gives the size.
    let mut resizing = throwing(Shape::Resize, false, 2, 1);
    resizing.functions[0].throws = Throws::Unless { counterpart: 1, arguments: 2, gives_size: true };
    assert!(matches!(assemble(&resizing.functions, &resizing.setting), Err(CodeError::Throws { .. })));
    for shape in [Shape::Map, Shape::Unmap, Shape::Destroy, Shape::Unsized] {
        assert!(matches!(with(Throws::Never, shape), Err(CodeError::Shape { .. })), "{shape:?}");
    }
    // Of so many functions some refer to what lies behind them.
    let bench = Bench::new(&SHAPES, &mut numbers, Budget::OfThread, Layout::for_blocks(0), 1);
    let far = Setting { code_address: 0x1000, ..bench.setting };
    assert!(matches!(assemble(&bench.functions, &far), Err(CodeError::Encode { .. })));
}

/// Many threads at once take blocks and give them back, also to each other: in the end none is left in the table.
#[test]
fn threads_leave_nothing_behind() {
    let mut numbers = Numbers(11);
    let layout = Layout::for_blocks(0);
    let shapes = [Shape::Size, Shape::Free];
    let bench = Bench::new(&shapes, &mut numbers, Budget::OfThread, layout, 64);
    let next = AtomicU64::new(0x7f00_0000_0010);
    let calls = 3_000;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                for call in 0..calls {
                    let block = next.fetch_add(16, Ordering::Relaxed);
                    answer_with(block);
                    assert_eq!(scratch::call(bench.entry(0), [call % 200, 0, 0, 0]).rax, block);
                    kept.push(block);
                    if kept.len() > 100 {
                        scratch::call(bench.entry(1), [kept.swap_remove(call as usize % 100), 0, 0, 0]);
                    }
                    scratch::answered();
                    scratch::seen();
                }
                for block in kept {
                    scratch::call(bench.entry(1), [block, 0, 0, 0]);
                }
            });
        }
    });
    assert_eq!(bench.data.word(layout.inside()), 0);
    assert_eq!(bench.data.word(layout.overflows()), 0);
    assert!(bench.data.bytes(layout.filter(), layout.buckets()).iter().all(|entries| *entries == 0));
    let slots = layout.buckets() * SLOTS;
    assert!((0..slots).all(|slot| bench.data.word(layout.table() + 8 * slot) == 0));
}
