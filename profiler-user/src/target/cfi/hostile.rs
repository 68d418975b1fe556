//! Files that lie: nothing in them makes us panic, hang or use memory without bound.

use std::{
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use profiler_common::unwind::{Row, WalkEnd};

use super::{
    UnwindInfo,
    assemble::{ADVANCE, ADVANCE4, EhFrame, REMEMBER, RESTORE, SAME_VALUE, elf_with_section},
    table::Table,
};
use crate::{allocations::largest, numbers::Numbers, target::hostile};

const UNSUPPORTED: Option<Row> = Some(Row::stop(WalkEnd::Unsupported));

fn small_library() -> Vec<u8> {
    std::fs::read("/lib/x86_64-linux-gnu/libdl.so.2").expect("a small library of glibc's")
}

/// What is said about addresses all over the file and outside.
fn rows(info: &UnwindInfo) -> Vec<Row> {
    let addresses = (0..0x6000).step_by(97).chain([u64::MAX - 1, u64::MAX]);
    addresses
        .map(|svma| {
            info.svma_of(svma);
            info.row(svma)
        })
        .collect()
}

fn ask(image: Vec<u8>) {
    if let Ok(Some(info)) = UnwindInfo::from_image(image) {
        rows(&info);
    }
}

#[test]
fn a_file_cut_anywhere_tells_less_and_nothing_else() {
    let whole = small_library();
    let told = rows(&UnwindInfo::from_image(whole.clone()).unwrap().expect("unwind information"));
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&whole, 0).unwrap();
    let steps = (0..whole.len()).step_by(97).chain(hostile::cuts(&whole));
    let mut cuts: Vec<usize> = steps.collect();
    cuts.sort_unstable();
    for cut in cuts.into_iter().rev() {
        file.set_len(cut as u64).unwrap();
        let ((by_file, by_image), largest_bytes) = largest(|| {
            let told = |loaded: Result<Option<UnwindInfo>, _>| loaded.ok().flatten().map(|info| rows(&info));
            (told(UnwindInfo::load(&file)), told(UnwindInfo::from_image(whole[..cut].to_vec())))
        });
        assert_eq!(by_file, by_image, "{cut}");
        assert!(largest_bytes < 1 << 20, "{cut}: {largest_bytes}");
        let nothing = Row::stop(WalkEnd::NoUnwindInfo);
        for (found, whole) in by_file.into_iter().flatten().zip(&told) {
            assert!(found == *whole || found == nothing, "{cut}: {found:?}");
        }
    }
    assert!(UnwindInfo::load(&file).is_err(), "nothing is left");
}

#[test]
fn a_file_that_claims_what_is_not_so_takes_no_memory() {
    hostile::claims(&small_library(), |claim, file| {
        let (_, largest_bytes) = largest(|| UnwindInfo::load(file).map(|info| info.map(|info| rows(&info))));
        assert!(largest_bytes < 8 << 20, "{claim}: {largest_bytes}");
    });
}

#[test]
fn a_file_with_wrong_bytes_never_panics() {
    let whole = small_library();
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let is_frames = |window: &[u8]| window == b"\x01zR\0";
    let frames = whole.windows(4).position(is_frames).expect(".eh_frame").saturating_sub(64);
    for round in 0..3000 {
        let mut image = whole.clone();
        // Headers and frames are small beside the rest: most rounds aim at them.
        let (from, span) = match round % 4 {
            0 => (0, 1024.min(image.len())),
            1 => (image.len() - 2048, 2048),
            2 => (frames, 1024.min(image.len() - frames)),
            _ => (0, image.len()),
        };
        for _ in 0..=numbers.place(16) {
            let at = from + numbers.place(span);
            image[at] = numbers.next().to_le_bytes()[0];
        }
        ask(image);
    }
}

#[test]
fn random_programs_never_panic() {
    let mut numbers = Numbers(88_172_645_463_325_252);
    for _ in 0..20_000 {
        let length = numbers.place(24);
        let program: Vec<u8> = (0..length).map(|_| numbers.next().to_le_bytes()[0]).collect();
        let start = if numbers.place(2) == 0 { 0x1000 } else { u64::MAX - 8 };
        let bytes = EhFrame::new().cie("zR", &program).function(start, 16, &program).finish();
        let table = Table::eh_frame(numbers.next(), bytes, None);
        for svma in [0, 0xfff, 0x1000, 0x100f, u64::MAX - 8, u64::MAX] {
            table.row(svma);
        }
    }
}

#[test]
fn a_location_that_overflows_is_not_supported() {
    let program = [ADVANCE4, 0xff, 0xff, 0xff, 0xff];
    let bytes = EhFrame::new().function(u64::MAX - 16, 15, &program).finish();
    assert_eq!(Table::eh_frame(0, bytes, None).row(u64::MAX - 3), UNSUPPORTED);
}

#[test]
fn a_program_longer_than_any_real_one_is_not_run() {
    let bytes = EhFrame::new().function(0x1000, 1 << 30, &vec![ADVANCE; 16 << 20]).finish();
    let table = Table::eh_frame(0, bytes, None);
    let started = Instant::now();
    for svma in 0x1000..0x2000 {
        assert_eq!(table.row(svma), UNSUPPORTED);
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn the_most_expensive_program_that_is_run_does_not_take_long() {
    // As many registers as there is room for, copied to and fro.
    let mut program: Vec<u8> = (20..120).flat_map(|register| [SAME_VALUE, register]).collect();
    program.extend([REMEMBER, RESTORE].repeat(60 << 10));
    let bytes = EhFrame::new().function(0x1000, 16, &program).finish();
    let started = Instant::now();
    Table::eh_frame(0, bytes, None).row(0x1000);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn more_states_than_are_kept_are_not_supported() {
    let bytes = EhFrame::new().function(0x1000, 16, &[REMEMBER; 64]).finish();
    assert_eq!(Table::eh_frame(0, bytes, None).row(0x1000), UNSUPPORTED);
}

#[test]
fn an_entry_that_points_at_itself_or_nowhere_describes_nothing() {
    let frames = EhFrame::new();
    let cie_pointer = frames.len() + 4;
    let bytes = frames.function(0x1000, 16, &[]).finish();
    for distance in [4_u32, 1, 0x7fff_ffff, u32::MAX] {
        let mut bytes = bytes.clone();
        bytes[cie_pointer..cie_pointer + 4].copy_from_slice(&distance.to_le_bytes());
        assert_eq!(Table::eh_frame(0, bytes, None).row(0x1000), None, "{distance:#x}");
    }
}

#[test]
fn a_cie_longer_than_any_real_one_describes_nothing() {
    let bytes = EhFrame::new().cie("zR", &[0; 256]).function(0x1000, 16, &[]).finish();
    assert_eq!(Table::eh_frame(0, bytes, None).row(0x1000), None);
}

#[test]
fn a_section_larger_than_its_file_is_an_error() {
    let mut image = elf_with_section(".eh_frame", 0, b"frames");
    // sh_size of the section, the second of three headers.
    let size_at = image.len() - 2 * 64 + 32;
    image[size_at..size_at + 8].copy_from_slice(&(100_u64 << 20).to_le_bytes());
    assert!(UnwindInfo::from_image(image.clone()).is_err());
    image[size_at..size_at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(UnwindInfo::from_image(image).is_err());
}
