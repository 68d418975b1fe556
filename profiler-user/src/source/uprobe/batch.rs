//! Reading a hash map of the kernel's through, thousands of entries at a call.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::errno::Errno;

/// A hash map that is read as a whole.
pub(super) struct Table<K, V> {
    map: HashMap<MapData, K, V>,
    /// The same map's, for what the library that loads it has no call for.
    descriptor: OwnedFd,
}

/// Entries that are read at a call. A bucket is read as a whole: one with more is read by a call with more.
const AT_ONCE: u32 = 4096;

impl<K: Pod, V: Pod> TryFrom<Map> for Table<K, V> {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        let Map::HashMap(data) = &map else { return Err(MapError::InvalidMapType { map_type: 0 }) };
        let descriptor = data.fd().as_fd().try_clone_to_owned()?;
        Ok(Self { map: map.try_into()?, descriptor })
    }
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Deletes an entry.
    pub(super) fn remove(&mut self, key: &K) -> Result<(), MapError> {
        self.map.remove(key)
    }

    /// All entries. Those that others insert or delete meanwhile may be among them, or not; no entry is met twice
    /// (`__htab_map_lookup_and_delete_batch` in kernel/bpf/hashtab.c).
    pub(super) fn read(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut at_once = AT_ONCE;
        let mut position = None;
        loop {
            let mut keys = Vec::with_capacity(at_once as usize);
            let mut values = Vec::with_capacity(at_once as usize);
            let more = match self.read_from(position, &mut keys, &mut values) {
                // There is no room for a whole bucket.
                Err(error)
                    if error.raw_os_error() == Some(Errno::ENOSPC as i32) && at_once < u32::MAX / 2 =>
                {
                    at_once *= 2;
                    continue;
                }
                read => read?,
            };
            entries.extend(keys.into_iter().zip(values));
            match more {
                Some(next) => position = Some(next),
                None => return Ok(entries),
            }
        }
    }

    /// Reads as many entries as there is room for, from a position on; gives the position behind them unless they are the last.
    fn read_from(
        &self,
        position: Option<u32>,
        keys: &mut Vec<K>,
        values: &mut Vec<V>,
    ) -> io::Result<Option<u32>> {
        let room = keys.capacity().min(values.capacity());
        let mut next = 0_u32;
        // SAFETY: a union of numbers, for which zeros are valid.
        let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
        attributes.batch.map_fd = self.descriptor.as_raw_fd() as u32;
        attributes.batch.in_batch =
            position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64);
        attributes.batch.out_batch = &raw mut next as u64;
        attributes.batch.keys = keys.as_mut_ptr() as u64;
        attributes.batch.values = values.as_mut_ptr() as u64;
        attributes.batch.count = u32::try_from(room).unwrap_or(u32::MAX);
        // SAFETY: the kernel reads as much of the union as it is told, and writes no more than `count` keys and values, for
        // which there is room: the map's are of these types, as was looked at when it was taken.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                bpf_cmd::BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<bpf_attr>(),
            )
        };
        let error = (returned != 0).then(io::Error::last_os_error);
        let is_last = match &error {
            None => false,
            Some(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => true,
            Some(_) => return Err(error.unwrap_or_else(|| io::ErrorKind::Other.into())),
        };
        // SAFETY: the kernel has stored there how many it has written.
        let read = room.min(unsafe { attributes.batch.count } as usize);
        // SAFETY: as many were written, and any bytes are valid.
        unsafe { keys.set_len(read) };
        // SAFETY: as above.
        unsafe { values.set_len(read) };
        Ok((!is_last).then_some(next))
    }
}
