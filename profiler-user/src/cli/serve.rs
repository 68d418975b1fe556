//! `heaptap serve`: the heap of a process over HTTP.

use std::sync::Arc;

use super::{
    args::ServeArgs,
    doctor,
    error::CliError,
    limit::Limit,
    live::INTERVAL,
    record::{say, too_costly},
    session::{Interrupts, Session, runtime},
};
use crate::{
    output::{
        http::{self, HeapSource},
        metrics,
    },
    profile::{cost, write::encode_gzip},
    source::uprobe::{Options, Subject},
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
    let (gate, sample_bytes) = args.gate.with(args.sample);
    let capacities = args.capacities.for_subject(Subject::running(&process).sampled(sample_bytes));
    let options = Options {
        capacities,
        with_mappings: args.mmap.mmap,
        sample_bytes,
        gate,
        stays_exact: args.sample.exact,
        with_diagnostics: diagnostics,
        ..Options::default()
    };
    let (session, _) = Session::start(process, args.symbols.clone().into(), options)?;
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
    session.say_how_gated();
    say(&format!("serving http://{address}/debug/pprof/heap"));
    let title = format!("{} (pid {})", process.comm(), process.pid());
    let server = http::serve(listener, title, Arc::clone(session) as Arc<dyn HeapSource>);
    tokio::pin!(server);
    let over = session.over();
    tokio::pin!(over);
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut limit = Limit::new(args.max_overhead);
    let mut is_over = false;
    loop {
        tokio::select! {
            _ = interrupts.next() => break,
            served = &mut server => return served.map_err(failed),
            ended = &mut over, if !is_over => {
                is_over = true;
                session.stop()?;
                ended?;
                say("the process has ended; its last profile can be fetched until Ctrl-C");
            }
            _ = ticks.tick() => {
                if session.may_have_changed() {
                    session.tend();
                    if let Err(error) = session.vitals() {
                        tracing::warn!(%error, "no live numbers");
                    }
                }
                if !is_over
                    && let Some(excess) = session.cost().and_then(|cost| limit.judge(&cost.last))
                    && !session.relieve(excess)
                {
                    is_over = true;
                    session.stop()?;
                    say(&too_costly(excess));
                    say("hint: what was collected can be fetched until Ctrl-C; to count on, allow more (--max-overhead)");
                }
            }
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

    fn metrics(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let process = self.process();
        Ok(metrics::encode(process.pid(), process.comm(), &self.vitals()?, self.cost().as_ref())?)
    }

    fn remarks(&self) -> Vec<String> {
        cost::comments(self.cost().as_ref())
    }
}
