//! Gates are run, and compared with a model that does the same in Rust.

use std::sync::atomic::{AtomicU64, Ordering};

use profiler_common::{
    call::{Outcome, Shape},
    heap::{class_limit_bytes, size_class},
};

use super::{
    Budget, CodeError, Function, Gates, Setting, Stop, Throws, assemble,
    scratch::{self, Memory, Seen, answer_with},
};
use crate::{
    gate::{
        gaps::{self, GAPS},
        layout::{BUDGET_BYTES, BUDGETS, CHARGE_BYTES, HAS_OVERFLOWED, Layout, NEXT_GAP, SLOTS},
    },
    target::{cover, elf::Code, site::Targets},
};

/// xorshift (Marsaglia 2003): the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Room for each function, and where the gates begin behind them.
const FUNCTION_BYTES: u64 = 128;
const GATES_AT: u64 = 1 << 13;

/// Functions that are gated, in scratch memory.
struct Bench {
    code: Memory,
    data: Memory,
    setting: Setting,
    functions: Vec<Function>,
    gates: Gates,
}

impl Bench {
    fn new(
        shapes: &[Shape],
        numbers: &mut Numbers,
        budget: Budget,
        layout: Layout,
        interval_bytes: u64,
    ) -> Self {
        let code = Memory::new(1 << 16);
        let data = Memory::new(usize::try_from(layout.bytes()).unwrap());
        let functions: Vec<Function> = (0..)
            .zip(shapes)
            .map(|(place, shape): (u64, _)| {
                let address = code.address() + place * FUNCTION_BYTES;
                let prologue = usize::try_from(numbers.below(scratch::PROLOGUES as u64)).unwrap();
                let bytes = scratch::function(address, prologue);
                code.write(place * FUNCTION_BYTES, &bytes);
                let end = address + bytes.len() as u64;
                let section = Code { offset: address, bytes };
                let cover =
                    cover::find(&section, address, Some(address..end), &Targets::of(&section)).unwrap();
                let address = cover.offset;
                let jumps = numbers.below(2) == 0;
                Function { shape: *shape, address, cover, jumps, throws: Throws::Never }
            })
            .collect();
        let (code_address, data_address) = (code.address() + GATES_AT, data.address());
        let setting = Setting { code_address, data_address, layout, budget };
        let gates = assemble(&functions, &setting).unwrap();
        code.write(GATES_AT, &gates.bytes);
        let gaps = gaps::draw(interval_bytes, || numbers.next());
        let gaps: Vec<u8> = gaps.iter().flat_map(|gap| gap.to_le_bytes()).collect();
        data.write(layout.gaps(), &gaps);
        let bench = Self { code, data, setting, functions, gates };
        bench.open();
        bench
    }

    /// Puts the jumps in.
    fn open(&self) {
        scratch::watch(&self.code, &self.gates.sites);
        for (function, entry) in self.functions.iter().zip(&self.gates.entries) {
            scratch::jump_into_gate(&self.code, function.address, *entry);
        }
    }

    fn entry(&self, place: usize) -> u64 {
        self.code.address() + place as u64 * FUNCTION_BYTES
    }

    fn site(&self, place: usize, stop: Stop) -> u64 {
        let mut sites = self.gates.sites.iter().filter(|site| site.function == place && site.stop == stop);
        sites.next().unwrap().address
    }
}

/// What a gate's data should have.
struct Model {
    layout: Layout,
    gaps: Vec<i64>,
    budget: i64,
    next: u32,
    table: Vec<[u64; SLOTS as usize]>,
    filter: Vec<u8>,
    overflows: u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lot {
    /// It goes straight through.
    Through,
    /// It stops, with what r11 has to have.
    Stops(u64),
}

impl Model {
    fn of(bench: &Bench) -> Self {
        let layout = bench.setting.layout;
        let gaps = (0..GAPS as u64).map(|gap| bench.data.word(layout.gaps() + 8 * gap).cast_signed());
        let buckets = usize::try_from(layout.buckets()).unwrap();
        Self {
            layout,
            gaps: gaps.collect(),
            budget: 0,
            next: 0,
            table: vec![[0; SLOTS as usize]; buckets],
            filter: vec![0; buckets],
            overflows: 0,
        }
    }

    fn bucket(&self, block: u64) -> usize {
        usize::try_from(self.layout.bucket_of(block)).unwrap()
    }

    /// What the budget had, where a call is in the sample.
    fn draw(&mut self, shape: Shape, arguments: [u64; 4]) -> Option<i64> {
        let convention = shape.convention().unwrap();
        let of = |number: u64| arguments[usize::try_from(number - 1).unwrap()];
        let size = of(convention.size_argument());
        let charge = match convention.count_argument() {
            0 => size.wrapping_add_signed(CHARGE_BYTES.into()).cast_signed(),
            count => {
                let product = of(count).cast_signed().checked_mul(size.cast_signed());
                product.unwrap_or(1 << 46).wrapping_add(CHARGE_BYTES.into())
            }
        };
        let had = self.budget;
        self.budget = had.wrapping_sub(charge);
        if self.budget >= 0 {
            return None;
        }
        self.budget = self.gaps[self.next as usize % GAPS];
        self.next = self.next.wrapping_add(1);
        (had >= 0).then_some(had)
    }

    /// Takes a block out: whether it was in there, or `None` where that is not known.
    fn remove(&mut self, block: u64) -> Option<bool> {
        let bucket = self.bucket(block);
        if self.filter[bucket] == 0 || block == 0 {
            return Some(false);
        }
        if let Some(slot) = self.table[bucket].iter_mut().find(|slot| **slot == block) {
            *slot = 0;
            self.filter[bucket] -= 1;
            return Some(true);
        }
        if self.filter[bucket] & HAS_OVERFLOWED != 0 { None } else { Some(false) }
    }

    fn insert(&mut self, block: u64) {
        let bucket = self.bucket(block);
        match self.table[bucket].iter_mut().find(|slot| **slot == 0) {
            Some(slot) => {
                *slot = block;
                self.filter[bucket] += 1;
            }
            None => {
                self.filter[bucket] |= HAS_OVERFLOWED;
                self.overflows += 1;
            }
        }
    }

    /// A call, of which it is known what it will give.
    fn call(&mut self, shape: Shape, arguments: [u64; 4], result: u64, stored: u64) -> Lot {
        let Some(convention) = shape.convention() else {
            return match self.remove(arguments[0]) {
                Some(false) => Lot::Through,
                _ => Lot::Stops(0),
            };
        };
        let of = |number: u64| arguments[usize::try_from(number - 1).unwrap()];
        let old = match convention.old_argument() {
            0 => 0,
            old => of(old),
        };
        let removed = if convention.old_argument() == 0 { Some(false) } else { self.remove(old) };
        let drawn = self.draw(shape, arguments);
        if removed == Some(false) && drawn.is_none() {
            return Lot::Through;
        }
        let size = match convention.count_argument() {
            0 => of(convention.size_argument()),
            count => {
                let product =
                    of(count).cast_signed().checked_mul(of(convention.size_argument()).cast_signed());
                product.map_or(u64::MAX, i64::cast_unsigned)
            }
        };
        const STORED: u64 = Outcome::Stored as u64;
        const SIZE: u64 = Outcome::Size as u64;
        let block = match convention.outcome() {
            STORED if result as u32 != 0 => 0,
            STORED => stored,
            SIZE if result >= size => old,
            SIZE => 0,
            _ => result,
        };
        let frees = convention.outcome() == Outcome::ReturnedOrFreed as u64
            || (convention.outcome() == Outcome::Returned as u64 && size == 0);
        if block != 0 {
            if drawn.is_some() {
                self.insert(block);
            }
        } else if removed == Some(true) && !frees {
            self.insert(old);
        }
        Lot::Stops(drawn.unwrap_or(-1).cast_unsigned())
    }

    /// Panics unless a gate's data has what it should.
    fn assert_equals(&self, bench: &Bench, budget_at: u64) {
        let data = &bench.data;
        assert_eq!(data.word(self.layout.inside()), 0, "threads inside");
        assert_eq!(data.word(self.layout.overflows()), self.overflows, "overflows");
        assert_eq!(data.word(budget_at).cast_signed(), self.budget, "budget");
        assert_eq!(data.word(budget_at + NEXT_GAP) as u32, self.next, "next gap");
        let filter = data.bytes(self.layout.filter(), self.layout.buckets());
        for (bucket, (is, ought)) in filter.iter().zip(&self.filter).enumerate() {
            assert_eq!(is, ought, "filter of bucket {bucket}, {:x?}", self.table[bucket]);
        }
        for (place, bucket) in (0..).zip(&self.table) {
            for (slot, block) in (0..).zip(bucket) {
                let at = self.layout.table() + 8 * (place * SLOTS + slot);
                assert_eq!(data.word(at), *block, "bucket {place}, slot {slot}");
            }
        }
    }
}

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
            (Lot::Stops(had), [call, returned]) => {
                assert_eq!((call.address, call.rsp), (bench.site(place, Stop::Call), back.rsp[0]), "{what}");
                assert_eq!((call.arguments, call.r11), (arguments, had), "{what}");
                let Seen { address, rsp, rax, .. } = *returned;
                assert_eq!(
                    (address, rsp, rax),
                    (bench.site(place, Stop::Return), back.rsp[0], result),
                    "{what}"
                );
                // While it is called, whoever walks the stack finds the gate's caller.
                let gate = bench.gates.frames.iter().find(|frame| frame.return_address == answered.words[0]);
                let caller = scratch::caller_of(gate.expect(&what), &answered);
                assert!(!scratch::is_in(&bench.gates, bench.setting.code_address, caller), "{what}");
            }
            other => panic!("{what}: {other:x?}"),
        }
        stops += seen.len();
    }
    model.assert_equals(&bench, budget_at);
    Compared { stops, overflows: model.overflows }
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
            kept += scratch::seen().iter().filter(|seen| is_kept(&bench, seen, charged)).count();
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

fn is_kept(bench: &Bench, seen: &Seen, charged: u64) -> bool {
    seen.address == bench.site(0, Stop::Call) && seen.r11 < charged
}

/// A function that throws where there is no memory is called by the gate only if it will not.
#[test]
fn nothing_of_the_gate_is_on_the_stack_of_a_function_that_throws() {
    let mut numbers = Numbers(3);
    let layout = Layout::for_blocks(0);
    let mut bench = Bench::new(&[Shape::Size, Shape::Size], &mut numbers, Budget::OfThread, layout, 1);
    bench.functions[0].throws = Throws::Unless { counterpart: 1, arguments: 1 };
    bench.gates = assemble(&bench.functions, &bench.setting).unwrap();
    bench.code.write(GATES_AT, &bench.gates.bytes);
    bench.open();
    // There is memory: the other one gives it, and its own gate sees nothing of that.
    answer_with(0x1230);
    let back = scratch::call(bench.entry(0), [64, 2, 3, 4]);
    assert_eq!((back.rax, back.kept, back.rsp[0]), (0x1230, scratch::KEPT, back.rsp[1]));
    let [answered] = *scratch::answered() else { panic!("it was called once") };
    assert_eq!((answered.arguments[0], answered.arguments[1]), (64, bench.setting.data_address));
    assert!(scratch::is_in(&bench.gates, bench.setting.code_address, answered.words[0]));
    let stops: Vec<u64> = scratch::seen().iter().map(|seen| seen.address).collect();
    assert_eq!(stops, [bench.site(0, Stop::Call), bench.site(0, Stop::Return)]);
    // There is none: the function itself is asked, with what its caller gave it, and returns to that.
    answer_with(0x4560);
    answer_with(0);
    let back = scratch::call(bench.entry(0), [64, 2, 3, 4]);
    assert_eq!((back.rax, back.kept, back.rsp[0]), (0x4560, scratch::KEPT, back.rsp[1]));
    let [other, own] = *scratch::answered() else { panic!("both were called") };
    assert!(scratch::is_in(&bench.gates, bench.setting.code_address, other.words[0]));
    assert_eq!((own.arguments, own.rsp), ([64, 2, 3, 4], back.rsp[0]));
    let stops: Vec<u64> = scratch::seen().iter().map(|seen| seen.address).collect();
    assert_eq!(stops, [bench.site(0, Stop::Call)], "its return is not seen, as if it had thrown");
    assert_eq!(bench.data.word(layout.inside()), 0);
}

#[test]
fn what_has_no_counterpart_or_gives_no_block_has_no_gate() {
    let mut numbers = Numbers(3);
    let bench =
        Bench::new(&[Shape::Size, Shape::Free], &mut numbers, Budget::OfThread, Layout::for_blocks(0), 1);
    let with = |throws, shape| {
        let mut functions = bench.functions.clone();
        (functions[0].throws, functions[0].shape) = (throws, shape);
        assemble(&functions, &bench.setting)
    };
    for counterpart in [0, 1, 2] {
        let throws = Throws::Unless { counterpart, arguments: 1 };
        assert!(matches!(with(throws, Shape::Size), Err(CodeError::Throws { .. })), "{counterpart}");
    }
    for shape in [Shape::Map, Shape::Unmap, Shape::Destroy, Shape::Unsized] {
        assert!(matches!(with(Throws::Never, shape), Err(CodeError::Shape { .. })), "{shape:?}");
    }
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
