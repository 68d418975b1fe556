//! Random functions, carried out step by step by what their instructions are known to do: whatever way they take, a chosen site is
//! passed as often as the entry, with everything in place that the programs read there.

use std::collections::BTreeMap;

use super::{
    elf::Code,
    site::{Choice, Targets, choose},
};

/// Where the functions begin in their file.
const START: u64 = 0x1000;

const FUNCTIONS: usize = 40_000;

/// Calls of each function, each of which may take another way.
const CALLS: usize = 8;

/// Steps of a call: some of the functions are loops without an end.
const STEPS: usize = 100;

/// rcx, rdx, rsp, rbp, rsi and rdi, by their numbers in instructions: what the programs read.
const READ: [usize; 6] = [1, 2, 4, 5, 6, 7];

/// An instruction; registers by their numbers, and jumps by the place of the instruction that they lead to.
#[derive(Clone, Copy, Debug)]
enum Op {
    Nop,
    Push(u8),
    Pop(u8),
    Move { to: u8, from: u8 },
    Set(u8),
    Clear(u8),
    Add(u8),
    Test(u8),
    Store(u8),
    JumpIf(usize),
    Jump(usize),
    Call,
    Return,
}

impl Op {
    fn random(random: &mut Random, count: usize) -> Self {
        let register = random.below(8) as u8;
        match random.below(16) {
            0 => Self::Nop,
            1 => Self::Push(register),
            2 => Self::Pop(register),
            3 | 4 => Self::Move { to: register, from: random.below(8) as u8 },
            5 => Self::Set(register),
            6 => Self::Clear(register),
            7 => Self::Add(register),
            8..=10 => Self::Test(register),
            11 => Self::Store(register),
            12 | 13 => Self::JumpIf(random.below(count)),
            14 => Self::Jump(random.below(count)),
            _ => Self::Call,
        }
    }

    /// Its bytes at `place`, where the instructions lie at `places`.
    fn bytes(self, place: usize, places: &[usize]) -> Vec<u8> {
        let relative = |to: usize| (places[to] as i64 - place as i64 - 2) as i8 as u8;
        match self {
            Self::Nop => vec![0x90],
            Self::Push(register) => vec![0x50 + register],
            Self::Pop(register) => vec![0x58 + register],
            Self::Move { to, from } => vec![0x48, 0x89, 0xc0 | from << 3 | to],
            Self::Set(register) => vec![0x48, 0xc7, 0xc0 | register, 1, 2, 3, 0],
            Self::Clear(register) => vec![0x31, 0xc0 | register << 3 | register],
            Self::Add(register) => vec![0x48, 0x83, 0xc0 | register, 8],
            Self::Test(register) => vec![0x48, 0x85, 0xc0 | register << 3 | register],
            Self::Store(register) => vec![0x48, 0x89, 0x44 | register << 3, 0x24, 0x10],
            Self::JumpIf(to) => vec![0x74, relative(to)],
            Self::Jump(to) => vec![0xeb, relative(to)],
            Self::Call => vec![0xe8, 0, 0x10, 0, 0],
            Self::Return => vec![0xc3],
        }
    }

    /// Does it; gives the place of the next instruction, `None` where there is none.
    fn run(self, at: usize, registers: &mut [u64; 8], random: &mut Random) -> Option<usize> {
        const SP: usize = 4;
        match self {
            Self::Nop | Self::Test(_) | Self::Store(_) => {}
            Self::Push(_) => registers[SP] = registers[SP].wrapping_sub(8),
            Self::Pop(register) => {
                registers[SP] = registers[SP].wrapping_add(8);
                registers[usize::from(register)] = random.next();
            }
            Self::Move { to, from } => registers[usize::from(to)] = registers[usize::from(from)],
            Self::Set(register) => registers[usize::from(register)] = 0x0003_0201,
            Self::Clear(register) => registers[usize::from(register)] = 0,
            Self::Add(register) => {
                let register = &mut registers[usize::from(register)];
                *register = register.wrapping_add(8);
            }
            Self::JumpIf(to) if random.below(2) == 0 => return Some(to),
            Self::JumpIf(_) => {}
            Self::Jump(to) => return Some(to),
            // Whatever a call may leave there by the System V ABI: rax, rcx, rdx, rsi, rdi.
            Self::Call => [0, 1, 2, 6, 7].into_iter().for_each(|changed| registers[changed] = random.next()),
            Self::Return => return None,
        }
        Some(at + 1)
    }
}

/// The splitmix64 generator (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// The code of instructions, and where each lies in it.
fn assemble(ops: &[Op]) -> (Vec<u8>, Vec<usize>) {
    let mut places = vec![0; ops.len()];
    let mut length = 0;
    for (op, place) in ops.iter().zip(&mut places) {
        *place = length;
        // How far a jump leads makes no difference to its length.
        length += op.bytes(0, &vec![0; ops.len()]).len();
    }
    let bytes = ops.iter().zip(&places).flat_map(|(op, place)| op.bytes(*place, &places)).collect();
    (bytes, places)
}

#[test]
fn a_site_is_passed_as_often_as_the_entry_with_all_that_is_read_in_place() {
    let mut random = Random(20_261_124);
    let mut chosen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..FUNCTIONS {
        let count = 2 + random.below(10);
        let mut ops: Vec<Op> = (1..count).map(|_| Op::random(&mut random, count)).collect();
        ops.push(Op::Return);
        let (bytes, places) = assemble(&ops);
        let code = Code { offset: START, bytes };
        let site = choose(&code, START, &Targets::of(&code)).expect("there is code");
        *chosen.entry(site.choice.text()).or_default() += 1;
        let at_site = places.iter().position(|place| START + *place as u64 == site.offset);
        let at_site = at_site.unwrap_or_else(|| panic!("{site:?} is no instruction of {ops:?}"));
        for _ in 0..CALLS {
            let mut registers = std::array::from_fn(|_| random.next());
            let mut entered = None;
            let mut next = Some(0);
            for _ in 0..STEPS {
                let Some(at) = next else { break };
                if at == 0 {
                    assert!(entered.is_none() || at_site == 0, "entered again before {site:?}: {ops:?}");
                    entered = Some(registers);
                }
                if at == at_site {
                    let entered = entered.take();
                    let entered = entered.unwrap_or_else(|| panic!("{site:?} is passed alone: {ops:?}"));
                    assert_eq!(READ.map(|read| registers[read]), READ.map(|read| entered[read]), "{ops:?}");
                }
                next = ops[at].run(at, &mut registers, &mut random);
            }
            // A call that has ended has passed the site.
            assert!(next.is_some() || entered.is_none(), "{site:?} is passed by: {ops:?}");
        }
    }
    for choice in [Choice::EntryEmulated, Choice::LaterEmulated, Choice::EntryStepped] {
        let count = chosen.get(choice.text()).copied().unwrap_or_default();
        assert!(count > FUNCTIONS / 50, "{choice:?} was chosen {count} times: {chosen:?}");
    }
}
