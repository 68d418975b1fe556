//! Work for a database that understands SQL, whichever it is, and of which every answer is known.

/// The rows of the table that is worked on.
pub const ROWS: u64 = 2000;

/// Reads and changes the rows of `items`, each of which has an `id` from 1 on, its remainder by 13 as `part` and `row ID` as `name`;
/// panics unless each answer is right. `ask` gives the lines that the database answers to some statements, with tabs between columns.
#[track_caller]
pub fn check(mut ask: impl FnMut(&str) -> Vec<String>, round: u64) {
    let part = round % 13;
    let ids: Vec<u64> = (1..=ROWS).filter(|id| id % 13 == part).collect();
    let sum: u64 = ids.iter().map(|id| id * round).sum();
    assert_eq!(
        ask(&format!("SELECT COUNT(*), SUM(id * {round}) FROM items WHERE part = {part}")),
        [format!("{}\t{sum}", ids.len())],
        "round {round}"
    );
    let select = format!("SELECT id, name FROM items WHERE part = {part} ORDER BY LENGTH(name), name");
    let was: Vec<String> = ids.iter().map(|id| format!("{id}\trow {id}")).collect();
    let becomes: Vec<String> = ids.iter().map(|id| format!("{id}\tline {id}")).collect();
    let change = format!("UPDATE items SET name = REPLACE(name, 'row', 'line') WHERE part = {part}");
    let answer = ask(&format!("{select}; BEGIN; {change}; {select}; ROLLBACK; {select}"));
    assert_eq!(answer, [was.as_slice(), &becomes, &was].concat(), "round {round}");
}
