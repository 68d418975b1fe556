//! Making a gate ready: its memory is there, and nothing leads to it yet.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use super::{
    Description, GateError, Jump, STOP_TRIES, feeding, is_led_to,
    leaving::{Remains, leave},
    memory::{self, Memory, Place},
    path_of, stop,
};
use crate::{
    gate::{
        code::{self, Budget, Frame, Function, Gates, Setting, Site},
        layout::{BUDGET_BYTES, BUDGETS, Layout, NEXT_GAP, PAGE_BYTES},
        room,
    },
    target::{
        cover::{Cover, JUMP_BYTES},
        mapping,
        process::has_shadow_stack,
        words::Words,
    },
};

/// What is to be gated, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The functions of an allocator, all of them.
    pub functions: Vec<Function>,
    /// What each is called, for people.
    pub names: Vec<String>,
    /// Where their code is mapped.
    pub module: Range<u64>,
    /// The mean number of bytes from one sample to the next.
    pub interval_bytes: u64,
    /// How many blocks there may be in the sample at a time; more cost more, and are counted.
    pub blocks: u64,
}

/// The beginning of a function, as its file has it: what stays, and what a jump is to cover.
#[derive(Clone, Debug)]
pub(super) struct LookedAt {
    pub(super) function: String,
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

impl LookedAt {
    fn of((name, function): (&String, &Function)) -> Self {
        let Cover { kept, bytes, .. } = &function.cover;
        Self {
            function: name.clone(),
            address: function.address.saturating_sub(kept.len() as u64),
            bytes: [kept.as_slice(), bytes].concat(),
        }
    }
}

/// A gate that nothing leads to yet. Dropping it leaves its memory in the process: see [`Prepared::withdraw`].
#[derive(Debug)]
pub struct Prepared {
    pub(super) pid: u32,
    pub(super) file: Arc<File>,
    pub(super) words: Words,
    pub(super) description: Description,
    pub(super) gates: Gates,
    /// What each function begins with, as many bytes as were looked at, and where.
    pub(super) looked_at: Vec<LookedAt>,
    /// How long the process stood still for it.
    pub stood: Duration,
}

impl Prepared {
    /// Makes a gate ready in a process.
    ///
    /// # Errors
    ///
    /// The process is then as it was.
    pub fn make(pid: u32, plan: &Plan) -> Result<Self, GateError> {
        check_calls(pid, plan)?;
        let layout = Layout::for_blocks(plan.blocks);
        let described = Description::bytes_for(plan.functions.len());
        let room = described + code_bytes(plan, layout)?;
        let find = || find_room(pid, &plan.module, room, layout.bytes());
        let place = find()?;
        let words = Words::of(pid).map_err(GateError::file(pid, "read"))?;
        let stopped = stop(pid, STOP_TRIES)?;
        let budget = stopped.rseq_offset()?.map_or(Budget::OfThread, |offset| Budget::OfCpu { offset });
        let map = |place| Memory::map(&stopped, pid, place);
        let memory = match map(place) {
            // The process has mapped something there meanwhile. Now that it stands still it maps nothing more.
            Err(error) if error.is_occupied() => map(find()?)?,
            mapped => mapped?,
        };
        let stood = stopped.release();
        let Memory { file, code, data } = memory;
        let setting =
            Setting { code_address: code.start + described, data_address: data.start, layout, budget };
        let filled = code::assemble(&plan.functions, &setting).map_err(GateError::from).and_then(|gates| {
            let jumps = jumps(pid, plan, &gates)?;
            let description =
                Description::new(code.clone(), data.clone(), layout, jumps).with_frames(&gates.frames);
            fill(&file, pid, &description, described, &gates, plan.interval_bytes)?;
            Ok((gates, description))
        });
        let (gates, description) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                memory::take_back(pid, &file, &[code, data])?;
                return Err(error);
            }
        };
        let looked_at = plan.names.iter().zip(&plan.functions).map(LookedAt::of).collect();
        Ok(Self { pid, file: Arc::new(file), words, description, gates, looked_at, stood })
    }

    /// Where programs are to run, with offsets in the file at [`Prepared::path`].
    pub fn sites(&self) -> impl Iterator<Item = (Site, u64)> {
        let start = self.description.code.start;
        self.gates.sites.iter().map(move |site| (*site, site.address.saturating_sub(start)))
    }

    /// Its calls, for those who walk stacks.
    pub fn frames(&self) -> &[Frame] {
        &self.gates.frames
    }

    /// A path that leads to its code, for as long as it or the gate is there.
    pub fn path(&self) -> PathBuf {
        path_of(&self.file)
    }

    /// Its code and data, where they are mapped.
    pub const fn ranges(&self) -> (&Range<u64>, &Range<u64>) {
        (&self.description.code, &self.description.data)
    }

    /// The file, for who writes its gaps.
    pub fn feed(&self, interval_bytes: u64) -> feeding::Fed {
        feeding::Fed::new(&self.file, self.pid, &self.description, interval_bytes)
    }

    /// Takes its memory from the process again, and first the jumps that lead there, if any could not be taken back when they were put in.
    pub fn withdraw(self) -> Result<(), GateError> {
        if is_led_to(&self.words, &self.description) {
            return leave(self.pid, &self.file, &Remains::of(&self.description)).map(drop);
        }
        let Description { code, data, .. } = self.description;
        memory::take_back(self.pid, &self.file, &[code, data])
    }
}

/// A call that is moved returns past the gate, which a shadow stack does not allow.
fn check_calls(pid: u32, plan: &Plan) -> Result<(), GateError> {
    let mut functions = plan.names.iter().zip(&plan.functions);
    let Some((name, _)) = functions.find(|(_, function)| function.cover.has_call()) else { return Ok(()) };
    if has_shadow_stack(pid).map_err(GateError::file(pid, "asked for shadow stacks"))? {
        return Err(GateError::ShadowStack { pid, function: name.clone() });
    }
    Ok(())
}

/// What the code takes at most: by thread it is longest, and by how far a jump goes it gets longer by no more than this.
fn code_bytes(plan: &Plan, layout: Layout) -> Result<u64, GateError> {
    let draft = Setting {
        code_address: plan.module.end.saturating_add(PAGE_BYTES),
        data_address: 1 << 46,
        layout,
        budget: Budget::OfThread,
    };
    let bytes = code::assemble(&plan.functions, &draft)?.bytes.len() as u64;
    Ok((bytes + bytes / 4).next_multiple_of(PAGE_BYTES))
}

fn find_room(pid: u32, module: &Range<u64>, code_bytes: u64, data_bytes: u64) -> Result<Place, GateError> {
    let mappings = mapping::of(pid)?;
    let heap = mappings.iter().find(|mapping| mapping.name == b"[heap]").map(|mapping| mapping.end);
    let mut mapped: Vec<Range<u64>> = mappings.iter().map(|mapping| mapping.start..mapping.end).collect();
    let none = || GateError::NoRoom { pid, bytes: code_bytes, start: module.start };
    let code = room::near(&mapped, module, code_bytes, heap).ok_or_else(none)?;
    // Beside a program at low addresses, that is no room for the data any more.
    mapped.insert(mapped.partition_point(|range| range.start < code), code..code + code_bytes);
    let data = room::low(&mapped, data_bytes, heap);
    Ok(Place { code, code_bytes, data, data_bytes })
}

fn jumps(pid: u32, plan: &Plan, gates: &Gates) -> Result<Vec<Jump>, GateError> {
    let pairs = plan.functions.iter().zip(&gates.entries);
    let jump = |(function, entry): (&Function, &u64)| {
        let original = *function.cover.bytes.first_chunk::<JUMP_BYTES>()?;
        Jump::to(function.address, original, *entry)
    };
    let far = || GateError::NoRoom { pid, bytes: gates.bytes.len() as u64, start: plan.module.start };
    pairs.map(|pair| jump(pair).ok_or_else(far)).collect()
}

/// Writes it into the file, which the process sees where it is mapped: it has written nothing there itself.
fn fill(
    file: &File,
    pid: u32,
    description: &Description,
    described: u64,
    gates: &Gates,
    interval_bytes: u64,
) -> Result<(), GateError> {
    let room = description.code.end - description.code.start;
    let bytes = described + gates.bytes.len() as u64;
    if bytes > room {
        return Err(GateError::TooLarge { bytes, room });
    }
    let layout = description.layout();
    let write = || -> io::Result<()> {
        file.write_all_at(&gates.bytes, described)?;
        feeding::write_gaps(file, room + layout.gaps(), interval_bytes)?;
        file.write_all_at(&budgets(interval_bytes)?, room + layout.budgets())?;
        // Last, for it says that all is there.
        description.write(|bytes, at| file.write_all_at(bytes, at))
    };
    write().map_err(GateError::file(pid, "written"))
}

/// What budgets begin with: a gap of their own, and a place in the table of gaps where others do not begin.
fn budgets(interval_bytes: u64) -> io::Result<Vec<u8>> {
    let gaps = feeding::draw(interval_bytes)?;
    let step = gaps.len() / BUDGETS as usize;
    let budgets = gaps.iter().step_by(step).take(BUDGETS as usize).enumerate().flat_map(|(number, gap)| {
        let mut budget = [0; BUDGET_BYTES as usize];
        let (had, rest) = budget.split_at_mut(NEXT_GAP as usize);
        had.copy_from_slice(&gap.to_le_bytes());
        let next = (number * step) as u32;
        rest.iter_mut().zip(next.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        budget
    });
    Ok(budgets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::gaps::GAPS;

    #[test]
    fn budgets_begin_apart_and_with_something() {
        let bytes = budgets(512 << 10).unwrap();
        assert_eq!(bytes.len() as u64, BUDGETS * BUDGET_BYTES);
        let nexts: Vec<u32> = bytes
            .chunks(BUDGET_BYTES as usize)
            .map(|budget| u32::from_le_bytes(budget[8..12].try_into().unwrap()))
            .collect();
        assert_eq!(nexts[0..3], [0, 16, 32]);
        assert!(nexts.iter().all(|next| (*next as usize) < GAPS));
        assert!(bytes.chunks(BUDGET_BYTES as usize).any(|budget| budget[..8] != [0; 8]));
    }
}
