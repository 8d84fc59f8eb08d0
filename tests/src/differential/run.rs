//! Sends the table to a server.
//!
//! Between two sections everything that the API can delete is deleted. What it cannot (tokens,
//! the server's own authorities) has other names in each section, or comes last.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::SerializeOptions;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::{Code, Status};
use vane_identity::x509_svid::Certificate;
use vane_wire::{descriptor_pool, google};

use super::answers::{Answer, Answers};
use super::inputs::Inputs;
use super::method::Method;
use super::normal::{Normal, Seen};
use super::table::{Body, Request, Section, Step};
use crate::admin::{Admin, unix_channel};
use crate::raw::{self, Raw};
use crate::remote;

/// How long a server may take until it has what an `until` wants. SPIRE reloads its caches
/// every five seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is asked for it.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A server under test.
pub struct Target {
    admin: Admin,
    address: SocketAddr,
    callers: HashMap<String, Raw>,
}

impl Target {
    /// The server whose admin socket and TCP address these are.
    pub async fn connect(socket: &Path, address: SocketAddr) -> Self {
        let local = Raw::new(unix_channel(socket).await.unwrap());
        let nobody = remote::channel(address, remote::nobody()).await.unwrap();
        let nobody = Raw::new(nobody);
        Self {
            admin: Admin::connect(socket).await,
            address,
            callers: HashMap::from([("local".to_owned(), local), ("nobody".to_owned(), nobody)]),
        }
    }

    /// Its answers to `sections`, whose text is `table`.
    pub async fn answer(&mut self, sections: &[Section], table: &str) -> Answers {
        let mut answers = Answers::default();
        let mut inputs = Inputs::default();
        for section in sections {
            self.clean().await;
            inputs.new_section();
            let mut seen = Seen::default();
            for step in &section.steps {
                match step {
                    Step::Caller { name, key, chain } => {
                        self.caller(&mut inputs, name, key, chain).await;
                    }
                    Step::Request(request) => {
                        let answer = self.request(&mut inputs, &mut seen, request, table).await;
                        let name = format!("{}.{}", section.name, request.name);
                        answers.list.push((name, answer));
                    }
                }
            }
        }
        answers
    }

    /// A new caller; nobody when the chain he needs was not given.
    async fn caller(&mut self, inputs: &mut Inputs, name: &str, key: &str, chain: &str) {
        self.callers.remove(name);
        let chain = inputs.refer(chain.trim_start_matches('$'));
        let Ok(Value::Array(chain)) = chain else {
            return;
        };
        let chain: Vec<Certificate> = chain
            .iter()
            .map(|der| Certificate::from_der(&unbase64(der)))
            .collect();
        let bundle = self.admin.bundle().await;
        let config = remote::with_svid(&chain, inputs.key(key), &bundle);
        let channel = remote::channel(self.address, config).await;
        self.callers
            .insert(name.to_owned(), Raw::new(channel.unwrap()));
    }

    async fn request(
        &self,
        inputs: &mut Inputs,
        seen: &mut Seen,
        request: &Request,
        table: &str,
    ) -> Answer {
        let method = Method::find(&request.method);
        let unsent = |why: String| Answer {
            code: "NotSent".to_owned(),
            message: why,
            ..Answer::default()
        };
        let Some(caller) = self.callers.get(&request.caller) else {
            return unsent(format!("there is no caller {}", request.caller));
        };
        let messages = match encode(inputs, &method, request) {
            Ok(messages) => messages,
            Err(why) => return unsent(why),
        };
        let deadline = Instant::now() + PATIENCE;
        let mut asks = tokio::time::interval(ASK_EVERY);
        let (answer, got) = loop {
            asks.tick().await;
            let answer = if method.is_watch() {
                caller.first(&method.path, messages[0].clone()).await
            } else {
                caller.call(&method.path, messages.clone()).await
            };
            let got = decode(&method, &answer);
            let wanted = request.until.as_deref();
            if wanted.is_none_or(|wanted| has(&answer, &got, wanted)) || Instant::now() > deadline {
                break (answer, got);
            }
        };
        if let Some(first) = got.first() {
            inputs.keep(&request.name, as_it_is(first));
        }
        let mut normal = Normal::new(&request.name, seen, &inputs.names, table);
        Answer {
            code: format!("{:?}", answer.status.code()),
            message: normal.text(answer.status.message()),
            details: details(&mut normal, &answer.status),
            messages: got.iter().map(|one| normal.message(one)).collect(),
        }
    }

    /// Deletes entries, agents and foreign bundles; what a server does not serve it has not.
    async fn clean(&self) {
        let mut inputs = Inputs::default();
        let table = super::table::parse(CLEAN);
        let steps = table.iter().flat_map(|section| &section.steps);
        for step in steps {
            let Step::Request(list) = step else { continue };
            let (delete, each) = match list.name.as_str() {
                "entries" => ("Entry/BatchDeleteEntry", "ids"),
                "agents" => ("Agent/DeleteAgent", "id"),
                _ => ("Bundle/BatchDeleteFederatedBundle", "trust_domains"),
            };
            self.request(&mut inputs, &mut Seen::default(), list, "")
                .await;
            let Ok(Value::Array(found)) = inputs.refer(&format!("{0}.{0}", list.name)) else {
                continue;
            };
            for one in found {
                let what = match list.name.as_str() {
                    "entries" => json!([one["id"]]),
                    "agents" => one["id"].clone(),
                    _ => json!([one["trust_domain"]]),
                };
                let request = Request {
                    name: "delete".to_owned(),
                    caller: "local".to_owned(),
                    method: delete.to_owned(),
                    body: Body::Messages(vec![json!({ each: what })]),
                    until: None,
                };
                let mut seen = Seen::default();
                let answer = self.request(&mut inputs, &mut seen, &request, "").await;
                assert_eq!(answer.code, "Ok", "{delete} {what}");
            }
        }
    }
}

const CLEAN: &str = "\
[clean]
entries local Entry/ListEntries
agents local Agent/ListAgents
bundles local Bundle/ListFederatedBundles
";

fn encode(inputs: &mut Inputs, method: &Method, request: &Request) -> Result<Vec<Bytes>, String> {
    let messages = match &request.body {
        Body::Raw(bytes) => return Ok(vec![Bytes::from(bytes.clone())]),
        Body::Messages(messages) => messages,
    };
    // A method that nobody knows takes anything.
    let Some(input) = method.input() else {
        return Ok(vec![Bytes::new()]);
    };
    let mut encoded = Vec::with_capacity(messages.len());
    for message in messages {
        let mut message = message.clone();
        inputs.fill(&mut message)?;
        encoded.push(read(&input, message, &request.name).encode_to_vec().into());
    }
    Ok(encoded)
}

fn read(input: &MessageDescriptor, json: Value, name: &str) -> DynamicMessage {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let shown = json.to_string();
    DynamicMessage::deserialize_with_options(input.clone(), json, &options)
        .unwrap_or_else(|error| panic!("{name}: {error}: {shown}"))
}

fn decode(method: &Method, answer: &raw::Answer) -> Vec<DynamicMessage> {
    let Some(output) = method.output() else {
        return Vec::new();
    };
    let messages = answer.messages.iter().cloned();
    messages
        .map(|bytes| DynamicMessage::decode(output.clone(), bytes).expect("an answer"))
        .collect()
}

/// Whether an answer has what an `until` wants.
fn has(answer: &raw::Answer, got: &[DynamicMessage], wanted: &str) -> bool {
    match answer.status.code() {
        // Never.
        Code::Unimplemented => return true,
        code if wanted == "denied" => return code == Code::PermissionDenied,
        _ => {}
    }
    let mut inputs = Inputs::default();
    if let Some(first) = got.first() {
        inputs.keep("answer", as_it_is(first));
    }
    inputs.refer(&format!("answer.{wanted}")).is_ok()
}

/// All of a message, for those who refer to it.
fn as_it_is(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("JSON of a message")
}

fn details(normal: &mut Normal<'_>, status: &Status) -> Option<Value> {
    if status.details().is_empty() {
        return None;
    }
    let inner = google::rpc::Status::decode(status.details()).expect("google.rpc.Status");
    assert_eq!(
        inner.code,
        i32::from(status.code()),
        "the code in the details"
    );
    let shown = inner.details.iter().map(|any| {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let pool: &DescriptorPool = descriptor_pool();
        let body = pool
            .get_message_by_name(name)
            .and_then(|kind| DynamicMessage::decode(kind, any.value.as_slice()).ok());
        let body = body.map_or(Value::Null, |body| normal.message(&body));
        json!({"@type": any.type_url, "value": body})
    });
    Some(shown.collect())
}

fn unbase64(value: &Value) -> Vec<u8> {
    use base64::Engine as _;
    let text = value.as_str().expect("base64");
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .expect("base64")
}
