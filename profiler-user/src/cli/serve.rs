//! `heaptap serve`: the heap of a process over HTTP.

use std::sync::Arc;

use super::{
    args::ServeArgs,
    doctor,
    error::CliError,
    live::INTERVAL,
    record::say,
    session::{End, Interrupts, Session, runtime},
};
use crate::{
    output::http::{self, HeapSource},
    profile::write::encode_gzip,
    target::Process,
};

/// Serves until a signal comes. A process that ends leaves its last profile to be fetched.
pub(super) fn run(args: &ServeArgs, diagnostics: bool) -> Result<(), CliError> {
    if !args.listen.ip().is_loopback() {
        return Err(CliError::NotLoopback { listen: args.listen });
    }
    doctor::require_all()?;
    let process = Process::open(args.pid)?;
    // A port that is taken is found out before anything is attached.
    let socket = std::net::TcpListener::bind(args.listen)
        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        .map_err(|source| CliError::Listen { listen: args.listen, source })?;
    let capacities = args.capacities.for_process(process.rss_bytes());
    let session = Session::start(process, &capacities, args.symbols.clone().into(), diagnostics, None)?;
    let session = Arc::new(session);
    runtime()?.block_on(attend(args, &session, socket))
}

async fn attend(
    args: &ServeArgs,
    session: &Arc<Session>,
    socket: std::net::TcpListener,
) -> Result<(), CliError> {
    let failed = |source| CliError::Listen { listen: args.listen, source };
    let mut interrupts = Interrupts::listen()?;
    let listener = tokio::net::TcpListener::from_std(socket).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let process = session.process();
    say(&format!("recording {} (pid {}), {}, until Ctrl-C", process.comm(), process.pid(), session.probed()));
    session.warn_of_the_unprobed();
    say(&format!("serving http://{address}/debug/pprof/heap"));
    let title = format!("{} (pid {})", process.comm(), process.pid());
    let server = http::serve(listener, title, Arc::clone(session) as Arc<dyn HeapSource>);
    tokio::pin!(server);
    let over = session.over();
    tokio::pin!(over);
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut is_over = false;
    loop {
        tokio::select! {
            _ = interrupts.next() => break,
            served = &mut server => return served.map_err(failed),
            end = &mut over, if !is_over => {
                is_over = true;
                session.stop()?;
                say(match session.why(end?) {
                    End::Exec => "the process has replaced its program (exec)",
                    End::Exited | End::Signal | End::Deadline => "the process has ended",
                });
                say("its last profile can be fetched until Ctrl-C");
            }
            _ = ticks.tick() => if let Err(error) = session.vitals() {
                tracing::warn!(%error, "no live numbers");
            },
        }
    }
    session.stop()?;
    interrupts.let_next_one_kill();
    Ok(())
}

impl HeapSource for Session {
    fn profile_gzip(&self) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let (_, profile) = self.profile()?;
        Ok(encode_gzip(&profile)?)
    }
}
