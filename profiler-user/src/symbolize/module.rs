//! The names in one mapped file, from everything there is about it.
//!
//! In this order, for each address: the DWARF of its debug file or its own, then the symbol tables of both, of its
//! mini debug information and of the dynamic linker.

use std::{collections::BTreeSet, fs::File, path::PathBuf};

use object::ReadRef;

use super::{
    debug_file::DebugFile,
    dwarf::{self, Answer},
    error::SymbolizeError,
    image::{Cache, Image},
    line::Line,
    mini,
    symbols::{Search, Table},
};
use crate::target::maps::Module;

/// A mapped file and its debug file.
pub(super) struct Sources<'sources> {
    pub(super) module: &'sources Module,
    pub(super) debug: Option<&'sources DebugFile>,
    /// Where the files that debug files share are looked for.
    pub(super) debug_dirs: &'sources [PathBuf],
}

impl Sources<'_> {
    /// The lines at each of `offsets` in the file, in the same order; empty where there is no name.
    pub(super) fn look_up(&self, offsets: &[u64]) -> Result<Vec<Vec<Line>>, SymbolizeError> {
        let Some(file) = self.module.file.as_deref() else { return Ok(vec![Vec::new(); offsets.len()]) };
        let cache = Cache::new(file);
        let image = Image::parse(&cache)?;
        let places: Vec<Option<u64>> = offsets.iter().map(|offset| image.address(*offset)).collect();
        let rising: BTreeSet<u64> = places.iter().copied().flatten().collect();
        let addresses: Vec<u64> = rising.into_iter().collect();
        let debug_cache = self.debug.map(|debug| Cache::new(&debug.file));
        let debug = debug_cache.as_ref().and_then(|cache| Image::parse(cache).ok());
        let lines = self.lines(file, &image, debug.as_ref(), &addresses);
        let line_at = |place: Option<u64>| {
            let index = addresses.binary_search(&place?).ok()?;
            lines.get(index).cloned()
        };
        Ok(places.into_iter().map(|place| line_at(place).unwrap_or_default()).collect())
    }

    fn lines<'data, R: ReadRef<'data>>(
        &self,
        file: &File,
        image: &Image<'data, R>,
        debug: Option<&Image<'data, R>>,
        addresses: &[u64],
    ) -> Vec<Vec<Line>> {
        // `prelink` moves a file to another address after its debug file was split off.
        let bias =
            debug.and_then(|debug| Some(image.base()?.wrapping_sub(debug.base()?))).unwrap_or_default();
        let from_dwarf = match debug.filter(|debug| debug.has_dwarf()).zip(self.debug) {
            Some((image, DebugFile { file, is_ours })) => {
                let addresses: Vec<u64> =
                    addresses.iter().map(|address| address.wrapping_sub(bias)).collect();
                self.from_dwarf(file, image, *is_ours, &addresses)
            }
            None => self.from_dwarf(file, image, false, addresses),
        };
        let mut answers = from_dwarf.into_iter();
        let mut answers: Vec<Answer> = addresses.iter().map(|_| answers.next().unwrap_or_default()).collect();
        let missing: Vec<usize> = answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| answer.lines.is_empty())
            .map(|(at, _)| at)
            .collect();
        let wanted: Vec<u64> = missing.iter().filter_map(|&at| addresses.get(at).copied()).collect();
        if !wanted.is_empty() {
            let names = self.from_symbols(image, debug, bias, &wanted);
            for (at, name) in missing.into_iter().zip(names) {
                if let (Some(answer), Some(name)) = (answers.get_mut(at), name) {
                    answer.lines = vec![Line::new(&name, std::mem::take(&mut answer.place))];
                }
            }
        }
        answers.into_iter().map(|answer| answer.lines).collect()
    }

    fn from_dwarf<'data, R: ReadRef<'data>>(
        &self,
        file: &File,
        image: &Image<'data, R>,
        is_ours: bool,
        addresses: &[u64],
    ) -> Vec<Answer> {
        if !image.has_dwarf() {
            return Vec::new();
        }
        let links = image.links();
        // blazesym would open what these name, as root and by names that the target chose; and where a debug link
        // leads to a wrong file it would give no names at all. Debug files in our own directories may share
        // another one, which is known by its build id.
        let is_led_astray = links.debug_file || (links.common_file && !is_ours);
        let answers = if is_led_astray {
            Err(SymbolizeError::RefersElsewhere)
        } else {
            dwarf::look_up(file, addresses, self.debug_dirs)
        };
        answers.unwrap_or_else(|error| {
            tracing::warn!(file = self.module.path, "no names from debug information: {error:#}");
            Vec::new()
        })
    }

    fn from_symbols<'data, R: ReadRef<'data>>(
        &self,
        image: &Image<'data, R>,
        debug: Option<&Image<'data, R>>,
        bias: u64,
        wanted: &[u64],
    ) -> Vec<Option<std::sync::Arc<str>>> {
        let mut search = Search::new(wanted);
        if let Some(debug) = debug {
            search.look_through(debug, Table::Whole, bias);
        }
        search.look_through(image, Table::Whole, 0);
        match mini::unpack(image) {
            Ok(Some(bytes)) => match Image::parse(bytes.as_slice()) {
                Ok(mini) => search.look_through(&mini, Table::Whole, 0),
                Err(error) => {
                    tracing::warn!(file = self.module.path, "no names from mini debug information: {error}")
                }
            },
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(file = self.module.path, "no names from mini debug information: {error}")
            }
        }
        search.look_through(image, Table::Dynamic, 0);
        search.finish()
    }
}
