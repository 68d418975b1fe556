//! Functions that are gated and called in this process, for tests.

use profiler_common::call::Shape;

use super::{
    Budget, Function, Gates, Setting, Stop, Throws, assemble,
    scratch::{self, Memory},
};
use crate::{
    gate::{gaps, layout::Layout},
    numbers::Numbers,
    target::{cover, elf::Code, site::Targets},
};

/// Room for each function, and where the gates begin behind them.
pub(super) const FUNCTION_BYTES: u64 = 128;
pub(super) const GATES_AT: u64 = 1 << 13;

/// Functions that are gated, in scratch memory.
pub(super) struct Bench {
    pub(super) code: Memory,
    pub(super) data: Memory,
    pub(super) setting: Setting,
    pub(super) functions: Vec<Function>,
    pub(super) gates: Gates,
}

impl Bench {
    pub(super) fn new(
        shapes: &[Shape],
        numbers: &mut Numbers,
        budget: Budget,
        layout: Layout,
        interval_bytes: u64,
    ) -> Self {
        let code = Memory::new(1 << 16);
        let data_bytes = usize::try_from(layout.bytes()).unwrap();
        let data = if numbers.below(2) == 0 { Memory::low(data_bytes) } else { Memory::new(data_bytes) };
        let functions: Vec<Function> = (0..)
            .zip(shapes)
            .map(|(place, shape): (u64, _)| {
                let address = code.address() + place * FUNCTION_BYTES;
                let prologue = usize::try_from(numbers.below(scratch::PROLOGUES as u64)).unwrap();
                let (bytes, own_bytes) = scratch::function(address, prologue);
                code.write(place * FUNCTION_BYTES, &bytes);
                let end = address + own_bytes;
                let section = Code { offset: address, bytes };
                let cover =
                    cover::find(&section, address, *shape, Some(address..end), &Targets::of(&section))
                        .unwrap();
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
    pub(super) fn open(&self) {
        scratch::watch(&self.code, &self.gates.sites);
        for (function, entry) in self.functions.iter().zip(&self.gates.entries) {
            scratch::jump_into_gate(&self.code, function.address, *entry);
        }
    }

    pub(super) fn entry(&self, place: usize) -> u64 {
        self.code.address() + place as u64 * FUNCTION_BYTES
    }

    pub(super) fn site(&self, place: usize, stop: Stop) -> u64 {
        let mut sites = self.gates.sites.iter().filter(|site| site.function == place && site.stop == stop);
        sites.next().unwrap().address
    }
}
