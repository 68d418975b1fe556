//! Where threads have their `struct rseq`, which tells them the processor that they run on.

use super::{StopError, request, threads::Threads};

impl Threads {
    /// How far behind its thread pointer each thread has it; `None` where one has none, or has it elsewhere.
    pub(super) fn rseq_offset(&mut self) -> Result<Option<i32>, StopError> {
        let mut common = None;
        for thread in self.states.keys() {
            let registers = self.registers_of(*thread)?;
            let address = request::restartable(*thread);
            let offset = address.map(|address| address.wrapping_sub(registers.fs_base).cast_signed());
            let Some(offset) = offset.and_then(|offset| i32::try_from(offset).ok()) else { return Ok(None) };
            if *common.get_or_insert(offset) != offset {
                return Ok(None);
            }
        }
        Ok(common)
    }
}
