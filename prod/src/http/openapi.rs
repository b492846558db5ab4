//! /openapi.json: what a node answers, as an OpenAPI document. Types are those of the examples, which stand in the document with them.

use serde_json::{Value, json};
use utoipa::openapi::{
    ContentBuilder, HttpMethod, InfoBuilder, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr, Required, ResponseBuilder, Schema,
    path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::{ArrayBuilder, ComponentsBuilder, Object, ObjectBuilder, Type},
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
    /// What may stand behind the `?`.
    pub(super) query: &'static [(&'static str, &'static str)],
    /// A body, or nothing.
    pub(super) body: &'static str,
    /// What is answered with 200: JSON, or words of another kind.
    pub(super) answer: &'static str,
}

const NONE: &[(&str, &str)] = &[];

const fn endpoint(
    path: &'static str,
    methods: &'static [&'static str],
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
) -> Endpoint {
    Endpoint { path, methods, summary, query: NONE, body, answer }
}

/// What every node has.
pub(super) const EVERY: &[Endpoint] = &[
    endpoint("/healthz", &["GET"], "Whether the node runs", "", r#"{"message":"alive","status":"success"}"#),
    endpoint("/readyz", &["GET"], "Whether the node knows its cluster", "", r#"{"message":"ready","status":"success"}"#),
    endpoint("/metrics", &["GET"], "Counters and histograms, in the OpenMetrics text format", "", "# EOF"),
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
        )
    },
    endpoint("/openapi.json", &["GET"], "This document", "", r#"{"openapi":"3.1.0"}"#),
];

/// What a balancer has.
pub(super) const BALANCER: &[Endpoint] = &[
    endpoint(
        "/init",
        &["POST"],
        "Sets the cluster up; servers, and their shards, may be left out",
        r#"{"N":1,"schema":{"columns":["Stud_id","Stud_name"],"dtypes":["Number","String"]},"shards":[{"Stud_id_low":0,"Shard_id":"sh1","Shard_size":4096}],"servers":{"Server0":["sh1"]},"on_conflict":"replace"}"#,
        r#"{"message":"Configured Database","status":"success"}"#,
    ),
    endpoint(
        "/status",
        &["GET"],
        "How the cluster is",
        "",
        r#"{"N":1,"schema":{"columns":["Stud_id","Stud_name"],"dtypes":["Number","String"]},"shards":[{"Stud_id_low":0,"Shard_id":"sh1","Shard_size":4096,"primary_server":"Server0","epoch":1,"warnings":[""]}],"servers":{"Server0":["sh1"]},"warnings":[""]}"#,
    ),
    endpoint(
        "/add",
        &["POST"],
        "Adds servers and shards; stage 1 gives hostnames",
        r#"{"n":1,"new_shards":[{"Stud_id_low":4096,"Shard_id":"sh2","Shard_size":4096}],"servers":{"Server[5]":["sh2"]},"hostnames":["S5"]}"#,
        r#"{"N":2,"message":"Add Server:5","status":"successful"}"#,
    ),
    endpoint(
        "/rm",
        &["DELETE", "POST"],
        "Removes servers; what they hold is first brought up elsewhere",
        r#"{"n":1,"servers":["Server4"],"hostnames":["S5"],"accept_data_loss":false}"#,
        r#"{"message":{"N":1,"servers":["Server4"]},"status":"successful"}"#,
    ),
    endpoint(
        "/move",
        &["POST"],
        "Moves a replica of a shard from one server to another, while it serves",
        r#"{"shard":"sh1","from":"Server0","to":"Server3"}"#,
        r#"{"message":"Replica of sh1 moved from Server0 to Server3","status":"successful"}"#,
    ),
    endpoint(
        "/drain",
        &["POST"],
        "Moves all replicas of a server to others; the server stays",
        r#"{"server":"Server2"}"#,
        r#"{"message":"Server2 holds no replica any more","moves":[{"shard":"sh1","to":"Server3"}],"status":"successful"}"#,
    ),
    Endpoint {
        query: &[("key", "The shard that holds this key"), ("shard", "The shard of this name")],
        ..endpoint(
            "/explain",
            &["GET", "POST"],
            "Why a shard stands as it does, what it waits for, and where a read goes",
            r#"{"key":2255}"#,
            r#"{"key":2255,"shard":"sh1","low":0,"high":4095,"epoch":1,"primary_server":"Server0","why_primary":[""],"waits_for":[""],"read":{"server":"Server0","why":""},"replicas":[{"server":"Server0","state":"up","in_flight":0,"is_member":true}],"current":{"epoch":1,"primary":"Server0","members":["Server0"],"write_quorum":1},"pending":null,"status":"success"}"#,
        )
    },
    endpoint(
        "/rep",
        &["GET"],
        "The servers, as stage 1 tells them",
        "",
        r#"{"message":{"N":1,"replicas":["Server 0"]},"status":"successful"}"#,
    ),
    endpoint(
        "/read",
        &["GET", "POST"],
        "Rows of a range of keys, both bounds inclusive, in key order; with Accept: application/x-ndjson one row a line",
        r#"{"Stud_id":{"low":1000,"high":8889},"limit":100,"cursor":"1000","consistency":"linearizable","versions":false}"#,
        r#"{"shards_queried":["sh1"],"data":[{"Stud_id":1000,"Stud_name":"PQR"}],"next_cursor":"1100","status":"success"}"#,
    ),
    endpoint(
        "/read/{server}",
        &["GET"],
        "What one server holds, by shard",
        "",
        r#"{"sh1":[{"Stud_id":1000,"Stud_name":"PQR"}],"status":"success"}"#,
    ),
    endpoint(
        "/write",
        &["POST"],
        "Puts rows, all or nothing for each shard",
        r#"{"data":[{"Stud_id":2255,"Stud_name":"GHI"}],"on_conflict":"replace"}"#,
        r#"{"message":"1 Data entries added","status":"success"}"#,
    ),
    endpoint(
        "/update",
        &["PUT"],
        "Changes columns of a row",
        r#"{"Stud_id":2255,"data":{"Stud_id":2255,"Stud_name":"JKL"}}"#,
        r#"{"message":"Data entry for Stud_id: 2255 updated","status":"success"}"#,
    ),
    endpoint(
        "/del",
        &["DELETE"],
        "Removes a row",
        r#"{"Stud_id":2255}"#,
        r#"{"message":"Data entry with Stud_id:2255 removed from all replicas","status":"success"}"#,
    ),
    endpoint("/primary_elect", &["GET", "POST", "PUT"], ELECT, SHARD, ELECTED),
    endpoint("/primary-elect", &["GET", "POST", "PUT"], ELECT, SHARD, ELECTED),
    endpoint(
        "/home",
        &["GET"],
        "Greets from a server chosen on the ring",
        "",
        r#"{"message":"Hello from Server: 3","status":"successful"}"#,
    ),
];

const SHARD: &str = r#"{"shard":"sh1"}"#;
const ELECT: &str = "Who leads a shard; POST and PUT move the primary to another up-to-date replica first";
const ELECTED: &str = r#"{"primary_server":"Server0","primary-elect":"Server0","server_id":"Server0","shard":"sh1","epoch":7,"message":"Primary server elected","status":"successful"}"#;

/// What a server has.
pub(super) const SERVER: &[Endpoint] = &[
    endpoint("/heartbeat", &["GET"], "Answers with nothing, if it runs", "", ""),
    endpoint("/home", &["GET"], "Greets", "", r#"{"message":"Hello from Server: 3","status":"successful"}"#),
    endpoint(
        "/copy",
        &["GET"],
        "What it holds of some shards",
        r#"{"shards":["sh1"]}"#,
        r#"{"sh1":[{"Stud_id":1000,"Stud_name":"PQR"}],"status":"success"}"#,
    ),
    endpoint(
        "/read",
        &["GET", "POST"],
        "Rows of a range of one shard",
        r#"{"shard":"sh2","Stud_id":{"low":2235,"high":2555}}"#,
        r#"{"data":[{"Stud_id":2255,"Stud_name":"GHI"}],"status":"success"}"#,
    ),
    endpoint(
        "/write",
        &["POST"],
        "Puts rows into one shard, through its primary",
        r#"{"shard":"sh2","curr_idx":507,"data":[{"Stud_id":2255,"Stud_name":"GHI"}]}"#,
        r#"{"message":"Data entries added","current_idx":512,"status":"success"}"#,
    ),
    endpoint(
        "/update",
        &["PUT"],
        "Changes columns of a row",
        r#"{"shard":"sh2","Stud_id":2255,"data":{"Stud_name":"JKL"}}"#,
        r#"{"message":"Data entry for Stud_id:2255 updated","status":"success"}"#,
    ),
    endpoint(
        "/del",
        &["DELETE"],
        "Removes a row",
        r#"{"shard":"sh1","Stud_id":2255}"#,
        r#"{"message":"Data entry with Stud_id:2255 removed","status":"success"}"#,
    ),
    endpoint(
        "/config",
        &["POST"],
        "Sets up a server that is on its own",
        r#"{"schema":{"columns":["Stud_id","Stud_name"],"dtypes":["Number","String"]},"shards":["sh1"]}"#,
        r#"{"message":"Server0:sh1 configured","status":"success"}"#,
    ),
    endpoint("/get_wal", &["GET"], "The log of a shard", SHARD, r#"{"data":[{"epoch":7,"index":12,"command":{}}],"status":"success"}"#),
    endpoint("/get_wal_count", &["GET"], "How many entries it has", SHARD, r#"{"count":512,"status":"success"}"#),
];

/// What every error looks like (API.md).
fn error_example() -> Value {
    json!({
        "message": "<Error> ...", "status": "failure", "code": "invalid-request", "applied": "no", "retryable": false,
        "hint": "what to do",
    })
}

/// The document of a node with these endpoints and those of every node.
pub(super) fn document(title: &str, own: &[Endpoint]) -> Value {
    let mut paths = PathsBuilder::new();
    for endpoint in own.iter().chain(EVERY) {
        let operation = operation(endpoint);
        let mut item = PathItem::default();
        for method in endpoint.methods {
            let method = match *method {
                "POST" => HttpMethod::Post,
                "PUT" => HttpMethod::Put,
                "DELETE" => HttpMethod::Delete,
                _ => HttpMethod::Get,
            };
            item.merge_operations(PathItem::new(method, operation.clone()));
        }
        paths = paths.path(endpoint.path, item);
    }
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let document = OpenApiBuilder::new()
        .info(InfoBuilder::new().title(title).version(env!("CARGO_PKG_VERSION")).build())
        .paths(paths)
        .components(Some(ComponentsBuilder::new().schema("Error", schema_of(&error_example())).security_scheme("token", bearer).build()))
        .security(Some([SecurityRequirement::new("token", NO_SCOPES)]))
        .build();
    // What was just built has a form.
    serde_json::to_value(document).unwrap_or_default()
}

const NO_SCOPES: [&str; 0] = [];

fn operation(endpoint: &Endpoint) -> Operation {
    let mut operation = OperationBuilder::new().summary(Some(endpoint.summary));
    if endpoint.path.contains("{server}") {
        let server = ParameterBuilder::new().name("server").parameter_in(ParameterIn::Path);
        operation = operation.parameter(server.required(Required::True).schema(Some(kind(Type::String))).build());
    }
    for (name, description) in endpoint.query {
        let parameter = ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Query).description(Some(*description));
        operation = operation.parameter(parameter.schema(Some(kind(Type::String))).build());
    }
    if let Ok(example) = serde_json::from_str::<Value>(endpoint.body) {
        let content = ContentBuilder::new().schema(Some(schema_of(&example))).example(Some(example)).build();
        operation = operation.request_body(Some(RequestBodyBuilder::new().content("application/json", content).build()));
    }
    let mut done = ResponseBuilder::new().description("Done");
    if let Ok(example) = serde_json::from_str::<Value>(endpoint.answer) {
        let content = ContentBuilder::new().schema(Some(schema_of(&example))).example(Some(example)).build();
        done = done.content("application/json", content);
    }
    let error = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    let refused = ResponseBuilder::new().description("It was refused, or did not work").content("application/json", error).build();
    operation.response("200", done.build()).response("default", refused).build()
}

fn kind(kind: Type) -> Object {
    ObjectBuilder::new().schema_type(kind).build()
}

/// The type of an example.
fn schema_of(example: &Value) -> Schema {
    match example {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), schema_of(field)));
            let object = fields.fold(ObjectBuilder::new().schema_type(Type::Object), |object, (name, field)| object.property(name, field));
            Schema::Object(object.build())
        }
        Value::Array(items) => {
            let item = items.first().map_or_else(|| Schema::Object(Object::new()), schema_of);
            Schema::Array(ArrayBuilder::new().items(RefOr::T(item)).build())
        }
        Value::String(_) => Schema::Object(kind(Type::String)),
        Value::Bool(_) => Schema::Object(kind(Type::Boolean)),
        Value::Number(number) if number.is_f64() => Schema::Object(kind(Type::Number)),
        Value::Number(_) => Schema::Object(kind(Type::Integer)),
        Value::Null => Schema::Object(Object::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn documents_say_types_examples_and_errors() {
        let document = document("A balancer", BALANCER);
        assert_eq!((&document["openapi"], &document["info"]["title"]), (&json!("3.1.0"), &json!("A balancer")));
        let read = &document["paths"]["/read"]["post"];
        let schema = &read["requestBody"]["content"]["application/json"]["schema"]["properties"];
        assert_eq!((&schema["limit"]["type"], &schema["versions"]["type"]), (&json!("integer"), &json!("boolean")), "{read}");
        let rows = &read["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["data"];
        assert_eq!((&rows["type"], &rows["items"]["properties"]["Stud_name"]["type"]), (&json!("array"), &json!("string")), "{read}");
        let error = &read["responses"]["default"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(error, "#/components/schemas/Error");
        assert_eq!(document["components"]["schemas"]["Error"]["properties"]["retryable"]["type"], "boolean");
        assert_eq!(document["paths"]["/explain"]["get"]["parameters"].as_array().map(Vec::len), Some(2));
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
