//! Files that are cut short or claim what is not so: fewer names, never others, and no memory for what is not there.

use std::{fs, fs::File, os::unix::fs::FileExt, sync::Arc};

use super::fixture::Guest;
use crate::{allocations::largest, target::hostile};

const FUNCTIONS: [&str; 4] = ["first_shared", "hidden_between", "last_shared", "by_hand"];

/// The names that a file gives to the functions, empty where it gives none.
fn names(guest: &mut Guest, file: &Arc<File>) -> Vec<String> {
    guest.hold_as(Arc::clone(file));
    let look_up = |function: &&str| {
        guest.try_lines(function, 1, &[]).map(|lines| lines.last().map(|line| line.function.name.clone()))
    };
    FUNCTIONS.iter().map(|function| look_up(function).ok().flatten().unwrap_or_default()).collect()
}

fn copy(image: &[u8]) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(image, 0).unwrap();
    Arc::new(file)
}

/// Cuts a file from its end on.
fn assert_cuts_leave_fewer_names(guest: &mut Guest) {
    let whole = fs::read(guest.file()).unwrap();
    let file = copy(&whole);
    let mut told = names(guest, &file);
    assert!(told.contains(&"first_shared".to_owned()), "{told:?}");
    for cut in hostile::cuts(&whole).into_iter().rev() {
        file.set_len(cut as u64).unwrap();
        let (found, largest_bytes) = largest(|| names(guest, &file));
        for (found, told) in found.iter().zip(&mut told) {
            assert!(found.is_empty() || found == told, "cut to {cut}: {found} for {told}");
        }
        assert!(largest_bytes < 4 << 20, "cut to {cut}: {largest_bytes}");
    }
    assert!(names(guest, &file).iter().all(String::is_empty), "nothing is left");
}

#[test]
fn a_file_with_debug_information_cut_anywhere_gives_fewer_names() {
    assert_cuts_leave_fewer_names(&mut Guest::library());
}

#[test]
fn a_file_with_symbols_cut_anywhere_gives_fewer_names() {
    let mut guest = Guest::library();
    guest.run("strip", &["-g", "lib/guest"]);
    assert_cuts_leave_fewer_names(&mut guest);
}

#[test]
fn a_stripped_file_cut_anywhere_gives_fewer_names() {
    let mut guest = Guest::library();
    guest.strip();
    assert_cuts_leave_fewer_names(&mut guest);
}

#[test]
fn a_debug_file_cut_anywhere_leaves_the_names_of_the_file_itself() {
    let guest = Guest::library();
    guest.strip();
    let name = format!("given/{}", guest.build_id_name());
    let debug = guest.make_debug_file(&name);
    let given = guest.root.path().join("given");
    let whole = fs::read(&debug).unwrap();
    assert_eq!(guest.name("hidden_between", 1, &[&given]), "hidden_between");
    for cut in hostile::cuts(&whole).into_iter().rev() {
        File::options().write(true).open(&debug).unwrap().set_len(cut as u64).unwrap();
        assert_eq!(guest.name("first_shared", 1, &[&given]), "first_shared", "{cut}");
        let name = guest.name("hidden_between", 1, &[&given]);
        assert!(name.is_empty() || name == "hidden_between", "{cut}: {name}");
    }
}

#[test]
fn a_file_that_claims_what_is_not_so_takes_no_memory() {
    let mut guest = Guest::library();
    guest.run("strip", &["-g", "lib/guest"]);
    let whole = fs::read(guest.file()).unwrap();
    hostile::claims(&whole, |claim, file| {
        let file = Arc::new(file.try_clone().unwrap());
        let (_, largest_bytes) = largest(|| names(&mut guest, &file));
        assert!(largest_bytes < 8 << 20, "{claim}: {largest_bytes}");
    });
}
