//! `heaptap report`: shows a heap profile as text or as a picture.

use std::{io, path::PathBuf};

use super::Outcome;
use crate::{
    output::{
        file::{FileError, OutputFile},
        flamegraph::{self, FlamegraphError},
        header::{self, Subject},
        table::write_top,
        tree::write_tree,
    },
    profile::{
        checked::CheckedProfile,
        diff::{self, DiffError, Difference},
        frame::base_name,
        proto, prune,
        read::{Limits, ReadError, read_profile},
        sample_type::{SampleIndexError, resolve_sample_index},
        validity::InvalidProfile,
        view::{
            self, Granularity,
            folded::FoldedStacks,
            top::{self, Cut},
            tree::CallTree,
        },
    },
};

/// Show which functions hold the memory, from a profile file.
///
/// Reads any pprof heap profile, not only heaptap's, and counts as `go tool pprof` does: `flat` is what
/// a function allocated itself, `cum` what it and all it called allocated.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  heaptap report heap.pb.gz                       the functions that hold most memory now
  heaptap report heap.pb.gz --lines               the same by source line
  heaptap report heap.pb.gz --tree                who called them
  heaptap report new.pb.gz --base old.pb.gz       what has grown since
  heaptap report heap.pb.gz --sample-index alloc_space
                                                  what was allocated, also if it was freed since
  heaptap report heap.pb.gz --flamegraph heap.svg a picture for a browser")]
pub struct ReportArgs {
    /// The profile: a pprof file, gzip-compressed or not
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The values to show, by name or number [default: what the profile says, mostly inuse_space]
    ///
    /// heaptap's profiles have alloc_objects, alloc_space, inuse_objects and inuse_space.
    #[arg(long, value_name = "TYPE")]
    pub sample_index: Option<String>,

    /// Tell source lines apart, not only functions
    #[arg(long)]
    pub lines: bool,

    /// Subtract this profile: show only what changed since
    ///
    /// Stacks are compared by the names of functions, files and lines, so that the profiles may come from
    /// different runs of the program.
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,

    /// Show callers above what they called, instead of a table
    #[arg(long, group = "view")]
    pub tree: bool,

    /// Write one line per stack (`main;parse;malloc 1024`), for other flame graph tools
    #[arg(long, group = "view")]
    pub folded: bool,

    /// Draw a flame graph into this SVG file
    #[arg(long, value_name = "OUT.svg", group = "view")]
    pub flamegraph: Option<PathBuf>,

    /// The number of rows in the table; 0 shows all, also the smallest
    ///
    /// Otherwise what is below 0.5% of the total is left out. With --tree only 0 has an effect.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,

    /// Overwrite the file of --flamegraph if it exists
    #[arg(long, requires = "flamegraph")]
    pub force: bool,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A profile cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The type of value does not exist.
    #[error("cannot show what --sample-index asks for")]
    SampleIndex(#[from] SampleIndexError),
    /// The two profiles cannot be compared.
    #[error("cannot subtract the profile of --base")]
    Base(#[from] DiffError),
    /// The flame graph cannot be drawn.
    #[error("cannot draw a flame graph")]
    Flamegraph(#[from] FlamegraphError),
    /// The flame graph cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The report cannot be written.
    #[error("cannot write the report")]
    Write(#[source] io::Error),
    /// The recording gave a profile that makes no sense: a defect.
    #[error("the recorded profile makes no sense")]
    Recorded(#[from] InvalidProfile),
}

/// Writes the report that `args` ask for to `stdout`, or the picture to its file.
///
/// A reader of `stdout` that goes away (`| head`) has seen enough: that is no error.
///
/// # Errors
///
/// Fails if a file is not a usable profile, lacks what is asked for, or if the output cannot be written.
pub fn run(args: &ReportArgs, stdout: &mut dyn io::Write) -> Result<Outcome, ReportError> {
    // Before the work, for this may fail.
    let picture = args.flamegraph.as_deref().map(|path| OutputFile::create(path, args.force)).transpose()?;
    let mut profile = read_profile(&args.file, Limits::default())?;
    let mut sample_index = resolve_sample_index(&profile, args.sample_index.as_deref())?;
    if let Some(base) = &args.base {
        let base = read_profile(base, Limits::default())?;
        Difference { profile, sample_index } = diff::subtract(&profile, &base, sample_index)?;
    }
    // pprof too shows all frames if a profile's wish makes no sense.
    let ignored = prune::drop_frames(&mut profile).err();
    let subject = Subject { profile: &profile, sample_index };
    let outcome =
        if view::total(&profile, sample_index) == 0 { Outcome::NothingToShow } else { Outcome::Done };

    if let Some(picture) = picture {
        let stacks = FoldedStacks::new(&profile, sample_index, granularity(args));
        picture.commit(&flamegraph::draw(&stacks, &title(subject), subject.unit())?)?;
        return Ok(outcome);
    }
    let written = write_text(args, subject, stdout).and_then(|()| match ignored {
        Some(ignored) if !args.folded => writeln!(stdout, "note: {ignored}; all frames are shown"),
        _ => Ok(()),
    });
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReportError::Write(error)),
        _ => Ok(outcome),
    }
}

/// Writes the first `max_rows` rows of a profile that was just recorded, as `heaptap report` would.
///
/// # Errors
///
/// Fails if the profile makes no sense or if the output cannot be written.
pub(super) fn write_summary(
    profile: proto::Profile,
    max_rows: usize,
    out: &mut dyn io::Write,
) -> Result<(), ReportError> {
    let mut profile = CheckedProfile::new(profile)?;
    // The pattern is our own; should it fail, all frames are shown.
    let _ = prune::drop_frames(&mut profile);
    let sample_index = resolve_sample_index(&profile, None)?;
    let rows = top::top(&profile, sample_index, Granularity::Functions, Cut { max_rows, ..Cut::default() });
    let subject = Subject { profile: &profile, sample_index };
    match write_top(out, subject, &rows).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReportError::Write(error)),
        _ => Ok(()),
    }
}

fn write_text(args: &ReportArgs, subject: Subject<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    let Subject { profile, sample_index } = subject;
    if args.folded {
        return FoldedStacks::new(profile, sample_index, granularity(args)).write(out);
    }
    let cut = match args.top {
        0 => Cut::NONE,
        max_rows => Cut { max_rows, ..Cut::default() },
    };
    if args.tree {
        let tree = CallTree::new(profile, sample_index, granularity(args));
        write_tree(out, subject, &tree, cut.min_fraction)?;
    } else {
        write_top(out, subject, &top::top(profile, sample_index, granularity(args), cut))?;
    }
    header::write_losses(out, profile)
}

fn granularity(args: &ReportArgs) -> Granularity {
    if args.lines { Granularity::Lines } else { Granularity::Functions }
}

/// Returns a picture's title: the type of value, and the program if it is known.
fn title(subject: Subject<'_>) -> String {
    let profile: &CheckedProfile = subject.profile;
    let main = profile.proto().mapping.first().map_or("", |main| profile.string(main.filename));
    match base_name(main) {
        "" => subject.type_name().to_owned(),
        program => format!("{program}: {}", subject.type_name()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::Parser as _;

    use super::*;
    use crate::profile::{fixture, proto::Profile, write::encode_gzip};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        report: ReportArgs,
    }

    /// Returns a directory with a profile `heap.pb.gz`.
    fn directory_with(profile: &Profile) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("heap.pb.gz"), encode_gzip(profile).unwrap()).unwrap();
        directory
    }

    /// Returns the report on `heap.pb.gz` with these arguments, in which `DIR` stands for the directory.
    fn report(directory: &Path, args: &str) -> (Result<Outcome, ReportError>, String) {
        let directory = directory.to_str().unwrap();
        let words = format!("report DIR/heap.pb.gz {args}").replace("DIR", directory);
        let command = Command::try_parse_from(words.split_whitespace()).unwrap();
        let mut text = Vec::new();
        (run(&command.report, &mut text), String::from_utf8(text).unwrap())
    }

    #[test]
    fn dropped_frames_are_not_shown_and_losses_are() {
        let directory = directory_with(&fixture::server());
        let (outcome, text) = report(directory.path(), "");
        assert_eq!(outcome.unwrap(), Outcome::Done);
        assert_eq!(
            text,
            "File: server
Build ID: abcd
Type: inuse_space
Showing nodes accounting for 4352B, 100% of 4352B total
      flat  flat%   sum%        cum   cum%
     3840B 88.24% 88.24%      3840B 88.24%  grow (inline)
      512B 11.76%   100%      4352B   100%  main
         0     0%   100%      3840B 88.24%  handle
comment: loss: 3 stacks were cut short
"
        );
    }

    #[test]
    fn lines_are_told_apart_in_every_view() {
        let directory = directory_with(&fixture::server());
        let (_, text) = report(directory.path(), "--folded --lines --sample-index 0");
        assert_eq!(
            text,
            "main server.c:10 8
main server.c:10;handle server.c:20;grow server.c:31 100
main server.c:10;server+0x1030 10
"
        );
        let (_, text) = report(directory.path(), "--tree --lines");
        assert!(text.contains("%  main server.c:10\n"), "{text}");
    }

    #[test]
    fn a_profile_minus_itself_is_empty() {
        let directory = directory_with(&fixture::server());
        let (outcome, text) = report(directory.path(), "--base DIR/heap.pb.gz");
        assert_eq!(outcome.unwrap(), Outcome::NothingToShow);
        assert!(text.contains("0% of 0 total"), "{text}");
    }

    #[test]
    fn a_picture_is_not_overwritten_unasked() {
        let directory = directory_with(&fixture::server());
        report(directory.path(), "--flamegraph DIR/heap.svg").0.unwrap();
        let svg = fs::read_to_string(directory.path().join("heap.svg")).unwrap();
        assert!(svg.contains("server: inuse_space"), "{svg}");
        let (error, _) = report(directory.path(), "--flamegraph DIR/heap.svg");
        assert!(error.unwrap_err().to_string().ends_with("exists already"));
        report(directory.path(), "--flamegraph DIR/heap.svg --force").0.unwrap();
    }

    #[test]
    fn a_pattern_that_makes_no_sense_is_mentioned() {
        let mut profile = fixture::server();
        let drop = usize::try_from(profile.drop_frames).unwrap();
        profile.string_table[drop] = "(".to_owned();
        let (_, text) = report(directory_with(&profile).path(), "");
        assert!(text.ends_with("not a usable regular expression; all frames are shown\n"), "{text}");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        struct Gone;
        impl io::Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let directory = directory_with(&fixture::server());
        let file = directory.path().join("heap.pb.gz");
        let command = Command::try_parse_from(["report".as_ref(), file.as_os_str()]).unwrap();
        assert_eq!(run(&command.report, &mut Gone).unwrap(), Outcome::Done);
    }

    #[test]
    fn views_exclude_each_other() {
        assert!(Command::try_parse_from(["report", "heap.pb.gz", "--tree", "--folded"]).is_err());
        assert!(Command::try_parse_from(["report", "heap.pb.gz", "--force"]).is_err());
    }
}
