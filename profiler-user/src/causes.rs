//! What led to an error, for people and for decisions.

use std::{error::Error, iter::successors};

/// An error and what caused it, outermost first.
pub fn causes<'error>(
    error: &'error (dyn Error + 'static),
) -> impl Iterator<Item = &'error (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// An error with all that has led to it, in one line.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::target::process::ProcessError;

    #[test]
    fn causes_are_walked_to_their_end() {
        let source =
            ProcessError::Unreadable { pid: 1, what: "stat", source: io::ErrorKind::PermissionDenied.into() };
        let texts: Vec<_> = causes(&source).map(ToString::to_string).collect();
        assert_eq!(texts, ["cannot read stat of process 1", "permission denied"]);
        assert_eq!(with_causes(&source), "cannot read stat of process 1: permission denied");
    }

    #[test]
    fn an_error_without_causes_is_told_as_it_is() {
        let error = ProcessError::Gone { pid: 1 };
        assert_eq!(with_causes(&error), error.to_string());
    }
}
