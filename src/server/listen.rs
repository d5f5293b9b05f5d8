//! Connections: accepted up to a limit, closed when a header takes too long, and ended in order.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::limit;

/// How long replies may take once the server ends.
const LAST_REPLIES: Duration = Duration::from_secs(5);

/// Serves until `stop` ends.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: impl AsyncFnOnce()) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(limit::CONNECTIONS));
    let mut stop = std::pin::pin!(stop());
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            // Too many open files: those that end make room.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Small replies, each whole: waiting to fill packets helps nobody.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limit::HEADER_TIME)
            .max_buf_size(limit::HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that went away is no error of ours.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST_REPLIES, graceful.shutdown()).await;
}
