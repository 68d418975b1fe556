//! placeholder
use profiler_common::unwind::Row;
use std::fs::File;
pub struct UnwindInfo;
#[derive(Debug, thiserror::Error)]
#[error("no")]
pub struct CfiError;
impl UnwindInfo {
    pub fn load(_: &File) -> Result<Option<Self>, CfiError> {
        Ok(None)
    }
    pub fn from_image(_: Vec<u8>) -> Result<Option<Self>, CfiError> {
        Ok(None)
    }
    pub fn svma_of(&self, o: u64) -> Option<u64> {
        Some(o)
    }
    pub fn row(&mut self, _: u64) -> Row {
        Row::FRAME_POINTER
    }
}
