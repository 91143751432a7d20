//! SIGTERM and SIGINT: the first asks for a graceful end, the second ends at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels. Needs a tokio runtime around it.
pub(super) fn shutdown_token() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if first.is_cancelled() {
                // What was answered 2xx is on disk, whatever happens now.
                tracing::warn!(
                    "{name} again: ending at once; what is left in the log is forwarded after the next start"
                );
                std::process::exit(1);
            }
            tracing::info!("{name}: shutting down; a second signal ends at once");
            first.cancel();
        }
    });
    Ok(token)
}
