//! What a gate's file says, of which anybody may have written one.

use crate::gated::{Description, Reading};

/// A file as a process may have it mapped: what is believed of it can be written and read again.
pub fn description(bytes: &[u8]) {
    let Ok(Reading::Whole(description)) = Description::read(&mut &*bytes) else { return };
    let mut written = vec![0; bytes.len() + (1 << 12)];
    let write = |part: &[u8], at: u64| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let place = at.checked_add(part.len()).and_then(|end| written.get_mut(at..end));
        place.ok_or(std::io::ErrorKind::FileTooLarge)?.copy_from_slice(part);
        Ok(())
    };
    // One may say more than there is room for.
    if description.write(write).is_ok() {
        let again = Description::read(&mut written.as_slice());
        assert!(matches!(again, Ok(Reading::Whole(again)) if again == description));
    }
}
