//! /openapi.json: what a node answers, as an OpenAPI document. Types are those of the examples, which stand in the document with them.

use super::{access, ops::OPEN_METRICS};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, HttpMethod, InfoBuilder, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr, Required, ResponseBuilder,
    Schema,
    path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::{ArrayBuilder, ComponentsBuilder, Object, ObjectBuilder, SchemaType, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

/// One endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    /// Its path, with `{server}` for a part that varies.
    pub(super) path: &'static str,
    /// The methods that it takes.
    pub(super) methods: &'static [&'static str],
    /// What it does.
    pub(super) summary: &'static str,
    /// What it promises.
    pub(super) promises: &'static str,
    /// What may stand behind the `?`.
    pub(super) query: &'static [(&'static str, &'static str)],
    /// What may stand among the headers, besides X-Request-Id.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// A body, or nothing.
    pub(super) body: &'static str,
    /// What is answered with 200: JSON, or words of another kind.
    pub(super) answer: &'static str,
    /// As what it is answered.
    pub(super) types: &'static [&'static str],
    /// What the answer has among its headers, besides X-Request-Id.
    pub(super) tells: &'static [(&'static str, &'static str)],
    /// What else may be answered, besides what any request or body may meet.
    pub(super) errors: &'static [u16],
}

const NONE: &[(&str, &str)] = &[];
/// The type of all answers but a few.
const JSON: &str = "application/json";
/// The type of rows that come one a line.
const LINES: &str = "application/x-ndjson";

const SESSION: &[(&str, &str)] = &[("Twinshard-Session", "What the client has seen, as the last answer gave it")];
const KEY: &[(&str, &str)] =
    &[("Idempotency-Key", "The client's own name for this change: given again, the first result is answered and nothing is done twice")];
const KEY_AND_SESSION: &[(&str, &str)] = &[KEY[0], SESSION[0]];
/// What writes promise.
const REPEAT: &str = "All or nothing in each shard; when shards fare differently, `shards` says what became of each. An answer with \
                      `retryable` true may be asked again as it was; after `applied` unknown or partial do so with the Idempotency-Key \
                      that it had, and nothing is done twice.";
const SEEN: &[(&str, &str)] = &[
    ("Twinshard-Session", "What the client has seen now, for reads with consistency session"),
    ("Twinshard-Position", "The entry of each shard's log at which this very answer was read (shard:index) or written (shard:epoch.index)"),
];

const fn endpoint(
    path: &'static str,
    methods: &'static [&'static str],
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
    errors: &'static [u16],
) -> Endpoint {
    Endpoint { path, methods, summary, promises: "", query: NONE, headers: NONE, body, answer, types: &[JSON], tells: NONE, errors }
}

/// What every node has.
pub(super) const EVERY: &[Endpoint] = &[
    endpoint("/healthz", &["GET"], "Whether the node runs", "", r#"{"message":"alive","status":"success"}"#, &[]),
    endpoint(
        "/readyz",
        &["GET"],
        "Whether the node can do now what it is there for; 503 says why not",
        "",
        r#"{"message":"ready","status":"success"}"#,
        &[],
    ),
    Endpoint {
        types: &[OPEN_METRICS],
        ..endpoint("/metrics", &["GET"], "Counters and histograms, in the OpenMetrics text format", "", "# EOF", &[])
    },
    Endpoint {
        query: &[
            ("after", "The number of an event: only those with higher ones"),
            ("machine", "`true`: each event also as the machines have it, and the cluster map"),
        ],
        ..endpoint(
            "/events",
            &["GET"],
            "What the node has seen, decided and done",
            "",
            r#"{"events":[{"number":7,"ago_ms":120,"kind":"suspected","text":"Server1 does not answer","server":"Server1"}],"last":7,"status":"success"}"#,
            &[400],
        )
    },
    endpoint("/openapi.json", &["GET"], "This document", "", r#"{"openapi":"3.1.0"}"#, &[]),
];

/// What a balancer has.
pub(super) const BALANCER: &[Endpoint] = &[
    endpoint(
        "/init",
        &["POST"],
        "Sets the cluster up; servers, and their shards, may be left out",
        r#"{"N":1,"schema":{"columns":["Stud_id","Stud_name"],"dtypes":["Number","String"]},"shards":[{"Stud_id_low":0,"Shard_id":"sh1","Shard_size":4096}],"servers":{"Server0":["sh1"]},"on_conflict":"replace"}"#,
        r#"{"message":"Configured Database","status":"success"}"#,
        &[409, 504],
    ),
    endpoint(
        "/status",
        &["GET"],
        "How the cluster is",
        "",
        r#"{"N":1,"schema":{"columns":["Stud_id","Stud_name"],"dtypes":["Number","String"]},"shards":[{"Stud_id_low":0,"Shard_id":"sh1","Shard_size":4096,"primary_server":"Server0","epoch":1,"warnings":[""]}],"servers":{"Server0":["sh1"]},"warnings":[""]}"#,
        &[504],
    ),
    endpoint(
        "/add",
        &["POST"],
        "Adds servers and shards; stage 1 gives hostnames",
        r#"{"n":1,"new_shards":[{"Stud_id_low":4096,"Shard_id":"sh2","Shard_size":4096}],"servers":{"Server[5]":["sh2"]},"hostnames":["S5"]}"#,
        r#"{"N":2,"message":"Add Server:5","status":"successful"}"#,
        &[409, 504],
    ),
    endpoint(
        "/rm",
        &["DELETE", "POST"],
        "Removes servers; what they hold is first brought up elsewhere",
        r#"{"n":1,"servers":["Server4"],"hostnames":["S5"],"accept_data_loss":false}"#,
        r#"{"message":{"N":1,"servers":["Server4"]},"status":"successful"}"#,
        &[409, 504],
    ),
    endpoint(
        "/move",
        &["POST"],
        "Moves a replica of a shard from one server to another, while it serves",
        r#"{"shard":"sh1","from":"Server0","to":"Server3"}"#,
        r#"{"message":"Server3 holds a replica of sh1, and Server0 holds none","status":"successful"}"#,
        &[409, 504],
    ),
    endpoint(
        "/drain",
        &["POST"],
        "Moves all replicas of a server to others; the server stays, and takes no replica until one is moved to it",
        r#"{"server":"Server2"}"#,
        r#"{"message":"Server2 holds no replica any more","moves":[{"shard":"sh1","to":"Server3"}],"status":"successful"}"#,
        &[409, 504],
    ),
    Endpoint {
        query: &[("key", "The shard that holds this key"), ("shard", "The shard of this name")],
        ..endpoint(
            "/explain",
            &["GET", "POST"],
            "Why a shard stands as it does, what it waits for, and where a read goes",
            r#"{"key":2255}"#,
            r#"{"key":2255,"shard":"sh1","low":0,"high":4095,"epoch":1,"primary_server":"Server0","why_primary":[""],"waits_for":[""],"read":{"server":"Server0","why":""},"replicas":[{"server":"Server0","state":"up","in_flight":0,"is_member":true}],"current":{"epoch":1,"primary":"Server0","members":["Server0"],"write_quorum":1},"pending":{"epoch":2,"primary":"Server0","members":["Server0"],"write_quorum":1},"status":"success"}"#,
            &[504],
        )
    },
    endpoint(
        "/rep",
        &["GET"],
        "The servers, as stage 1 tells them",
        "",
        r#"{"message":{"N":1,"replicas":["Server 0"]},"status":"successful"}"#,
        &[],
    ),
    Endpoint {
        promises: "One answer is one atomic read of each shard in it. Pages that `limit` and `cursor` ask for are reads of their own, each \
                   at its own time: what is written between them may be in one and not in another. An answer that breaks off is not \
                   whole: it lacks the last chunk. With application/x-ndjson the last line is no row: it has the status. `limit` is from \
                   1 to 1,000,000; `cursor` is the `next_cursor` of the answer before, absent at the end.",
        headers: SESSION,
        types: &[JSON, LINES],
        tells: SEEN,
        ..endpoint(
            "/read",
            &["GET", "POST"],
            "Rows of a range of keys, both bounds inclusive, in key order; with Accept: application/x-ndjson one row a line. What comes of one shard is of one moment, however long the answer; a connection that closes before the end says that it broke off. `next_cursor` begins another request, which is a read of its own, of a later moment: `cursor_promise` `key-order` says that from page to page only the order of keys holds, and what the session token says",
            r#"{"Stud_id":{"low":1000,"high":8889},"limit":100,"cursor":"1000","consistency":"linearizable","versions":false}"#,
            r#"{"shards_queried":["sh1"],"data":[{"Stud_id":1000,"Stud_name":"PQR"}],"next_cursor":"1100","cursor_promise":"key-order","index":{"sh1":12},"lag":{"sh1":0},"position":"1:12","session":"1:12","status":"success"}"#,
            &[409, 504],
        )
    },
    endpoint(
        "/read/{server}",
        &["GET"],
        "What one server holds, by shard",
        "",
        r#"{"sh1":[{"Stud_id":1000,"Stud_name":"PQR"}],"status":"success"}"#,
        &[400, 409, 504],
    ),
    Endpoint {
        promises: REPEAT,
        headers: KEY_AND_SESSION,
        tells: SEEN,
        ..endpoint(
            "/write",
            &["POST"],
            "Puts rows, all or nothing for each shard",
            r#"{"data":[{"Stud_id":2255,"Stud_name":"GHI"}],"on_conflict":"replace"}"#,
            r#"{"message":"1 Data entries added","skipped":0,"status":"success"}"#,
            &[409, 422, 504],
        )
    },
    Endpoint {
        promises: REPEAT,
        headers: KEY_AND_SESSION,
        tells: SEEN,
        ..endpoint(
            "/update",
            &["PUT"],
            "Changes columns of a row",
            r#"{"Stud_id":2255,"data":{"Stud_id":2255,"Stud_name":"JKL"}}"#,
            r#"{"message":"Data entry for Stud_id: 2255 updated","status":"success"}"#,
            &[404, 409, 422, 504],
        )
    },
    Endpoint {
        promises: REPEAT,
        headers: KEY_AND_SESSION,
        tells: SEEN,
        ..endpoint(
            "/del",
            &["DELETE", "POST"],
            "Removes a row",
            r#"{"Stud_id":2255}"#,
            r#"{"message":"Data entry with Stud_id:2255 removed from all replicas","status":"success"}"#,
            &[404, 409, 422, 504],
        )
    },
    Endpoint { query: OF_SHARD, ..endpoint("/primary_elect", &["GET", "POST", "PUT"], ELECT, SHARD, ELECTED, &[409, 504]) },
    Endpoint { query: OF_SHARD, ..endpoint("/primary-elect", &["GET", "POST", "PUT"], ELECT, SHARD, ELECTED, &[409, 504]) },
    Endpoint {
        types: &["text/plain"],
        ..endpoint("/heartbeat", &["GET"], "Answers with nothing, if a server chosen on the ring is there", "", "", &[409, 504])
    },
    endpoint(
        "/home",
        &["GET"],
        "Greets from a server chosen on the ring",
        "",
        r#"{"message":"Hello from Server: 3","status":"successful"}"#,
        &[409, 504],
    ),
];

const OF_SHARD: &[(&str, &str)] = &[("shard", "The shard, where the body names none")];
const SHARD: &str = r#"{"shard":"sh1"}"#;
const ELECT: &str = "Who leads a shard; POST and PUT move the primary to another up-to-date replica first";
const ELECTED: &str = r#"{"primary_server":"Server0","primary-elect":"Server0","server_id":"Server0","shard":"sh1","epoch":7,"message":"Primary server elected","status":"successful"}"#;

/// What a server has.
pub(super) const SERVER: &[Endpoint] = &[
    Endpoint { types: &["text/plain"], ..endpoint("/heartbeat", &["GET"], "Answers with nothing, if it runs", "", "", &[]) },
    endpoint("/home", &["GET"], "Greets", "", r#"{"message":"Hello from Server: 3","status":"successful"}"#, &[]),
    endpoint(
        "/copy",
        &["GET"],
        "What it holds of some shards",
        r#"{"shards":["sh1"]}"#,
        r#"{"sh1":[{"Stud_id":1000,"Stud_name":"PQR"}],"status":"success"}"#,
        &[504],
    ),
    Endpoint {
        headers: SESSION,
        ..endpoint(
            "/read",
            &["GET", "POST"],
            "Rows of a range of one shard",
            r#"{"shard":"sh2","Stud_id":{"low":2235,"high":2555}}"#,
            r#"{"data":[{"Stud_id":2255,"Stud_name":"GHI"}],"status":"success"}"#,
            &[504],
        )
    },
    Endpoint {
        headers: KEY,
        ..endpoint(
            "/write",
            &["POST"],
            "Puts rows into one shard, through its primary",
            r#"{"shard":"sh2","curr_idx":507,"data":[{"Stud_id":2255,"Stud_name":"GHI"}]}"#,
            r#"{"message":"Data entries added","current_idx":512,"status":"success"}"#,
            &[409, 422, 504],
        )
    },
    Endpoint {
        headers: KEY,
        ..endpoint(
            "/update",
            &["PUT"],
            "Changes columns of a row",
            r#"{"shard":"sh2","Stud_id":2255,"data":{"Stud_name":"JKL"}}"#,
            r#"{"message":"Data entry for Stud_id:2255 updated","status":"success"}"#,
            &[404, 409, 422, 504],
        )
    },
    Endpoint {
        headers: KEY,
        ..endpoint(
            "/del",
            &["DELETE", "POST"],
            "Removes a row",
            r#"{"shard":"sh1","Stud_id":2255}"#,
            r#"{"message":"Data entry with Stud_id:2255 removed","status":"success"}"#,
            &[404, 409, 422, 504],
        )
    },
    endpoint(
        "/config",
        &["POST"],
        "Sets up a server that is on its own",
        r#"{"schema":{"columns":["Stud_id","Stud_name"],"dtypes":["Number","String"]},"shards":["sh1"]}"#,
        r#"{"message":"Server0:sh1 configured","status":"success"}"#,
        &[409, 504],
    ),
    endpoint(
        "/get_wal",
        &["GET"],
        "The log of a shard",
        SHARD,
        r#"{"data":[{"epoch":7,"index":12,"command":[{"delete":{"Stud_id":2255}}]}],"status":"success"}"#,
        &[504],
    ),
    endpoint("/get_wal_count", &["GET"], "How many entries it has", SHARD, r#"{"count":512,"status":"success"}"#, &[504]),
];

/// What every error looks like (API.md).
fn error_example() -> Value {
    json!({
        "message": "<Error> ...", "status": "failure", "code": "invalid-request", "applied": "no", "retryable": false,
        "hint": "what to do", "shards": { "sh1": { "applied": "yes" }, "sh2": { "applied": "no", "message": "<Error> ...", "code": "key-exists" } },
    })
}

/// What holds for all of it.
const CONVENTIONS: &str = "HEAD is there wherever GET is. Repeated slashes and one at the end of a path do not matter. A number with a whole \
                           value is an integer, however it is written; one beyond 64 bits is refused. A number given for a String column comes back as a number. Fields that are not here are ignored, \
                           unless they are nearly one of these.";

/// The document of a node with these endpoints and those of every node.
pub(super) fn document(title: &str, own: &[Endpoint]) -> Value {
    let mut paths = PathsBuilder::new();
    for endpoint in own.iter().chain(EVERY) {
        let mut item = PathItem::default();
        for method in endpoint.methods {
            let (method, kind) = match *method {
                "POST" => (Method::POST, HttpMethod::Post),
                "PUT" => (Method::PUT, HttpMethod::Put),
                "DELETE" => (Method::DELETE, HttpMethod::Delete),
                _ => (Method::GET, HttpMethod::Get),
            };
            item.merge_operations(PathItem::new(kind, operation(endpoint, &method)));
        }
        paths = paths.path(endpoint.path, item);
    }
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let document = OpenApiBuilder::new()
        .info(InfoBuilder::new().title(title).description(Some(CONVENTIONS)).version(env!("CARGO_PKG_VERSION")).build())
        .paths(paths)
        .components(Some(ComponentsBuilder::new().schema("Error", schema_of(&error_example())).security_scheme("token", bearer).build()))
        .security(Some([SecurityRequirement::new("token", NO_SCOPES)]))
        .build();
    // What was just built has a form.
    serde_json::to_value(document).unwrap_or_default()
}

const NO_SCOPES: [&str; 0] = [];

/// What every request may say, and every answer says.
const REQUEST_ID: (&str, &str) = ("X-Request-Id", "The name by which logs call the request: the client's, or one that it is given");

fn operation(endpoint: &Endpoint, method: &Method) -> Operation {
    let needs_token = access::needed(method, endpoint.path).is_some();
    let mut operation = OperationBuilder::new().summary(Some(endpoint.summary));
    if !endpoint.promises.is_empty() {
        operation = operation.description(Some(endpoint.promises));
    }
    if !needs_token {
        operation = operation.securities(Some([]));
    }
    if endpoint.path.contains("{server}") {
        let server = ParameterBuilder::new().name("server").parameter_in(ParameterIn::Path);
        operation = operation.parameter(server.required(Required::True).schema(Some(kind(Type::String))).build());
    }
    let queries = endpoint.query.iter().map(|query| (query, ParameterIn::Query));
    let headers = endpoint.headers.iter().chain([&REQUEST_ID]).map(|header| (header, ParameterIn::Header));
    for ((name, description), place) in queries.chain(headers) {
        let parameter = ParameterBuilder::new().name(*name).parameter_in(place).description(Some(*description));
        operation = operation.parameter(parameter.schema(Some(kind(Type::String))).build());
    }
    let has_body = !endpoint.body.is_empty();
    if let Ok(example) = serde_json::from_str::<Value>(endpoint.body) {
        let content = ContentBuilder::new().schema(Some(schema_of(&example))).example(Some(example)).build();
        operation = operation.request_body(Some(RequestBodyBuilder::new().content(JSON, content).build()));
    }
    let mut done = ResponseBuilder::new().description("Done");
    for (name, description) in endpoint.tells.iter().chain([&REQUEST_ID]) {
        done = done.header(*name, HeaderBuilder::new().schema(Some(kind(Type::String))).description(Some(*description)).build());
    }
    for content_type in endpoint.types {
        let content = ContentBuilder::new();
        let content = match serde_json::from_str::<Value>(endpoint.answer) {
            Ok(example) if *content_type == JSON => content.schema(Some(schema_of(&example))).example(Some(example)),
            Ok(_) | Err(_) => content.schema(Some(kind(Type::String))),
        };
        done = done.content(*content_type, content.build());
    }
    operation = operation.response("200", done.build());
    for status in errors(endpoint, needs_token, has_body) {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
        let mut refused = ResponseBuilder::new().description(reason).content(JSON, content);
        let header = match status {
            401 => Some("WWW-Authenticate"),
            405 => Some("Allow"),
            429 | 503 => Some("Retry-After"),
            _ => None,
        };
        if let Some(header) = header {
            refused = refused.header(header, HeaderBuilder::new().schema(Some(kind(Type::String))).build());
        }
        operation = operation.response(status.to_string(), refused.build());
    }
    operation.build()
}

/// What may be answered besides 200: own errors, those of any request, of one that needs a token and counts, and of one with a body.
fn errors(endpoint: &Endpoint, needs_token: bool, has_body: bool) -> BTreeSet<u16> {
    let of_tokens: &[u16] = if needs_token { &[401, 429] } else { &[] };
    let of_bodies: &[u16] = if has_body { &[400, 408, 413, 415] } else { &[] };
    endpoint.errors.iter().chain(&[403, 405, 503]).chain(of_tokens).chain(of_bodies).copied().collect()
}

fn anything() -> Object {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).build()
}

fn kind(kind: Type) -> Object {
    ObjectBuilder::new().schema_type(kind).build()
}

/// Fields that are null where there is none of what they name.
const NULLABLE: &[&str] = &["key", "epoch", "primary_server", "schema", "read", "current", "pending"];

/// The type of a field.
fn schema_of_field(name: &str, example: &Value) -> Schema {
    match one_of(name).unwrap_or_else(|| schema_of(example)) {
        Schema::Object(mut object) if NULLABLE.contains(&name) => {
            if let SchemaType::Type(kind) = object.schema_type {
                object.schema_type = SchemaType::from_iter([kind, Type::Null]);
            }
            Schema::Object(object)
        }
        schema => schema,
    }
}

/// The words that a field of this name may have, if only those.
fn one_of(field: &str) -> Option<Schema> {
    // Of stage 1 `message` is an object, and a `command` is a list of operations or one thing of its own.
    if ["message", "command"].contains(&field) {
        return Some(Schema::Object(anything()));
    }
    let words: &[&str] = match field {
        "consistency" => &["linearizable", "session", "stale"],
        "on_conflict" => &["replace", "error", "skip"],
        "applied" => &["no", "yes", "partial", "unknown"],
        _ => return None,
    };
    Some(Schema::Object(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.iter().copied())).build()))
}

/// The type of an example.
fn schema_of(example: &Value) -> Schema {
    match example {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), schema_of_field(name, field)));
            let object = fields.fold(ObjectBuilder::new().schema_type(Type::Object), |object, (name, field)| object.property(name, field));
            Schema::Object(object.build())
        }
        Value::Array(items) => {
            let item = items.first().map_or_else(|| Schema::Object(anything()), schema_of);
            Schema::Array(ArrayBuilder::new().items(RefOr::T(item)).build())
        }
        Value::String(_) => Schema::Object(kind(Type::String)),
        Value::Bool(_) => Schema::Object(kind(Type::Boolean)),
        Value::Number(number) if number.is_f64() => Schema::Object(kind(Type::Number)),
        Value::Number(_) => Schema::Object(kind(Type::Integer)),
        Value::Null => Schema::Object(anything()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_say_types_examples_and_errors() {
        let document = document("A balancer", BALANCER);
        assert_eq!((&document["openapi"], &document["info"]["title"]), (&json!("3.1.0"), &json!("A balancer")));
        let read = &document["paths"]["/read"]["post"];
        let schema = &read["requestBody"]["content"]["application/json"]["schema"]["properties"];
        assert_eq!((&schema["limit"]["type"], &schema["versions"]["type"]), (&json!("integer"), &json!("boolean")), "{read}");
        let rows = &read["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["data"];
        assert_eq!((&rows["type"], &rows["items"]["properties"]["Stud_name"]["type"]), (&json!("array"), &json!("string")), "{read}");
        let responses = read["responses"].as_object().expect("responses");
        assert_eq!(
            responses.keys().map(String::as_str).collect::<Vec<_>>(),
            ["200", "400", "401", "403", "405", "408", "409", "413", "415", "429", "503", "504"]
        );
        for (_, response) in responses.iter().filter(|(status, _)| *status != "200") {
            assert_eq!(response["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/Error");
        }
        assert_eq!(schema["consistency"]["enum"], json!(["linearizable", "session", "stale"]), "{read}");
        assert!(read["description"].as_str().is_some_and(|words| words.contains("one atomic read of each shard")), "{read}");
        assert!(responses["200"]["content"]["application/x-ndjson"].is_object() && responses["503"]["headers"]["Retry-After"].is_object());
        assert_eq!(document["components"]["schemas"]["Error"]["properties"]["retryable"]["type"], "boolean");
        let parameters = |path: &str, method: &str| -> Vec<String> {
            let parameters = document["paths"][path][method]["parameters"].as_array().expect("parameters");
            parameters.iter().map(|parameter| parameter["name"].as_str().expect("a name").to_owned()).collect()
        };
        assert_eq!(parameters("/explain", "get"), ["key", "shard", "X-Request-Id"]);
        assert_eq!(parameters("/primary_elect", "post"), ["shard", "X-Request-Id"]);
        assert_eq!(parameters("/write", "post"), ["Idempotency-Key", "Twinshard-Session", "X-Request-Id"]);
        assert!(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"][OPEN_METRICS].is_object());
        assert!(document["components"]["schemas"]["Error"]["properties"]["shards"].is_object());
        for (path, is_open) in [("/healthz", true), ("/readyz", true), ("/openapi.json", true), ("/status", false), ("/metrics", false)] {
            let security = document["paths"][path]["get"].get("security");
            assert_eq!(security, is_open.then(|| json!([])).as_ref(), "{path}");
        }
    }

    /// The paths of the routes that a source file has.
    fn routes(source: &str) -> BTreeSet<&str> {
        source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn every_route_is_documented_and_nothing_else() {
        let common = routes(include_str!("ops.rs"));
        for (own, source) in [(BALANCER, include_str!("balancer.rs")), (SERVER, include_str!("server.rs"))] {
            let routed: BTreeSet<&str> = routes(source).union(&common).copied().collect();
            let documented: BTreeSet<&str> = own.iter().chain(EVERY).map(|endpoint| endpoint.path).collect();
            assert_eq!(routed, documented);
        }
    }

    #[test]
    fn every_example_is_json() {
        for endpoint in [BALANCER, SERVER, EVERY].into_iter().flatten() {
            for text in [endpoint.body, endpoint.answer] {
                assert!(text.is_empty() || text == "# EOF" || serde_json::from_str::<Value>(text).is_ok(), "{}: {text}", endpoint.path);
            }
        }
    }
}
