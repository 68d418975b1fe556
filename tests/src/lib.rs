//! Running guests under heaptap and comparing its profiles with their ledgers.
