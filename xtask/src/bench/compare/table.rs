//! The table: a row for each workload and profiler.

use super::target::Work;
use super::usage::Memory;
use crate::bench::spread::Spread;

/// What was measured once.
#[derive(Clone, Debug)]
pub(super) struct Measure {
    pub(super) work: Work,
    /// The CPU in percent and the memory of the profiler's own processes, if it has any.
    pub(super) own: Option<(f64, Memory)>,
    /// The most memory that the target has had.
    pub(super) target_mb: f64,
    pub(super) detach_s: Option<f64>,
    pub(super) note: Option<String>,
}

/// All rounds of one workload with one profiler.
#[derive(Debug)]
pub(super) struct Row {
    workload: String,
    profiler: &'static str,
    rounds: Vec<Round>,
    failures: Vec<String>,
}

#[derive(Debug)]
struct Round {
    measure: Measure,
    /// By what the target takes alone in the same round.
    slowdown: f64,
    /// By how much the target has more memory than alone in the same round.
    growth_mb: f64,
}

impl Row {
    pub(super) fn new(workload: &str, profiler: &'static str) -> Self {
        Self { workload: workload.to_owned(), profiler, rounds: Vec::new(), failures: Vec::new() }
    }

    /// Adds a round, which is compared with the same round's native one.
    pub(super) fn add(&mut self, measure: Measure, native: &Measure) {
        let slowdown = measure.work.operation_ns / native.work.operation_ns;
        let growth_mb = measure.target_mb - native.target_mb;
        self.rounds.push(Round { measure, slowdown, growth_mb });
    }

    /// Adds a round that came to nothing.
    pub(super) fn fail(&mut self, reason: &str) {
        self.failures.push(reason.to_owned());
    }

    /// So it will not work in the next round either.
    pub(super) const fn has_never_worked(&self) -> bool {
        self.rounds.is_empty() && !self.failures.is_empty()
    }

    fn cells(&self) -> [String; 12] {
        let redis = |measure: &Measure| measure.work.p99_ms.is_some();
        [
            self.workload.clone(),
            self.profiler.to_owned(),
            self.spread(|round| Some(round.measure.work.operation_ns)),
            self.spread(|round| Some(round.slowdown)),
            self.spread(|round| redis(&round.measure).then_some(1e9 / round.measure.work.operation_ns)),
            self.spread(|round| round.measure.work.p99_ms),
            self.spread(|round| Some(round.measure.own?.0)),
            self.spread(|round| Some(round.measure.own?.1.own_mb)),
            self.spread(|round| Some(round.measure.own?.1.kernel_mb)),
            self.spread(|round| Some(round.growth_mb)),
            self.spread(|round| round.measure.detach_s),
            self.notes(),
        ]
    }

    fn spread(&self, measure: impl Fn(&Round) -> Option<f64>) -> String {
        let values: Vec<f64> = self.rounds.iter().filter_map(measure).collect();
        if values.is_empty() { "–".to_owned() } else { Spread::of(values).to_string() }
    }

    fn notes(&self) -> String {
        let mut notes: Vec<String> = Vec::new();
        if let Some(reason) = self.failures.first() {
            // What a profiler says may be anything.
            let reason = reason.replace('|', "\\|").replace('<', "&lt;");
            let (failed, all) = (self.failures.len(), self.failures.len() + self.rounds.len());
            notes.push(match self.rounds.len() {
                0 => format!("does not work: {reason}"),
                _ => format!("{failed} of {all} rounds failed: {reason}"),
            });
        }
        let said = self.rounds.iter().filter_map(|round| round.measure.note.clone());
        if let Some((note, count)) = counted(said) {
            notes.push(format!("{note} ({count} of {} rounds)", self.rounds.len()));
        }
        notes.join("; ")
    }
}

fn counted(mut notes: impl Iterator<Item = String>) -> Option<(String, usize)> {
    let first = notes.next()?;
    Some((first, 1 + notes.count()))
}

const HEAD: [&str; 12] = [
    "workload",
    "profiler",
    "ns for an operation",
    "slowdown",
    "requests/s",
    "p99, ms",
    "profiler's CPU, %",
    "its memory, MB",
    "the kernel's for it, MB",
    "the target's growth, MB",
    "detached after, s",
    "notes",
];

/// The table, in Markdown.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut lines = vec![line(&HEAD)];
    lines.push(line(&HEAD.map(|head| match head {
        "workload" | "profiler" | "notes" => "---",
        _ => "---:",
    })));
    lines.extend(rows.iter().map(|row| line(&row.cells())));
    lines.join("\n")
}

fn line(cells: &[impl AsRef<str>]) -> String {
    cells.iter().fold("|".to_owned(), |line, cell| format!("{line} {} |", cell.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(operation_ns: f64) -> Measure {
        let work = Work { operation_ns, operations: 1.0, p99_ms: None };
        Measure { work, own: None, target_mb: 10.0, detach_s: None, note: None }
    }

    #[test]
    fn each_round_is_compared_with_its_own_native_run() {
        let mut row = Row::new("pairs", "heaptap");
        for (native, with) in [(10.0, 1000.0), (20.0, 2400.0), (10.0, 1100.0)] {
            row.add(measure(with), &measure(native));
        }
        assert_eq!(row.cells()[3], "110 (100 to 120)");
        assert_eq!(row.cells()[4], "–");
        assert_eq!(row.cells()[9], "0.00 (0.00 to 0.00)");
    }

    #[test]
    fn what_cannot_run_is_shown_with_its_reason() {
        let mut row = Row::new("pairs", "heaptap");
        row.fail("attaching: ended: error: a | b");
        assert!(row.has_never_worked());
        assert!(markdown(&[row]).ends_with("| does not work: attaching: ended: error: a \\| b |"));
        let mut row = Row::new("pairs", "heaptap");
        row.add(measure(1.0), &measure(1.0));
        row.fail("timeout");
        assert_eq!(row.cells()[11], "1 of 2 rounds failed: timeout");
    }

    #[test]
    fn all_lines_have_all_columns() {
        let text = markdown(&[Row::new("pairs", "native")]);
        assert_eq!(text.lines().count(), 3);
        for line in text.lines() {
            assert_eq!(line.matches('|').count(), HEAD.len() + 1, "{line}");
        }
    }
}
