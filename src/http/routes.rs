//! Every path of the ingest listener, once: who answers it, and how the OpenAPI document describes it.
//!
//! Both stand in one row, so that there is no path without a description.

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, any, get};

use super::openapi::{self, Describe, paths};
use super::{Gateway, pages, produce, receipts, rest_proxy};

/// A path, in the words of axum, which are those of OpenAPI.
pub(super) struct Route {
    pub(super) path: &'static str,
    handler: MethodRouter<Arc<Gateway>>,
    pub(super) describe: Describe,
}

const fn route(path: &'static str, handler: MethodRouter<Arc<Gateway>>, describe: Describe) -> Route {
    Route {
        path,
        handler,
        describe,
    }
}

pub(super) fn all() -> Vec<Route> {
    vec![
        route("/", get(pages::hello).fallback(pages::get_only), paths::root),
        route("/hello", get(pages::hello).fallback(pages::get_only), paths::hello),
        route(
            "/hello/{name}",
            get(pages::greeting).fallback(pages::get_only),
            paths::greeting,
        ),
        route(
            "/user/{username}",
            get(pages::user).fallback(pages::get_only),
            paths::user,
        ),
        route(
            "/openapi.json",
            get(openapi::answer).fallback(pages::get_only),
            paths::openapi,
        ),
        route("/v1/topics/{topic}", any(produce::topic), paths::topic),
        route(
            "/v1/receipts/{seq}",
            get(receipts::show).fallback(pages::get_only),
            paths::receipt,
        ),
        route("/topics/{topic}", any(rest_proxy::v2), paths::v2),
        route("/v3/clusters", any(rest_proxy::clusters), paths::clusters),
        route("/v3/clusters/{id}", any(rest_proxy::cluster), paths::cluster),
        route(
            "/v3/clusters/{id}/topics/{topic}/records",
            any(rest_proxy::v3),
            paths::v3,
        ),
        route("/{source}", any(produce::source), paths::sources),
    ]
}

pub(super) fn router(gateway: Arc<Gateway>) -> Router {
    let routes = all().into_iter();
    routes
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .fallback(produce::unknown_path)
        .with_state(gateway)
}
