//! `spire.api.server.logger.v1.Logger`: the level of this process's log, while it runs.
//!
//! A change is written to the log of changes before it is made. It does not outlive the
//! process.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};
use vane_chassis::telemetry::LogLevel;
use vane_wire::spire::api::server::logger::v1::logger_server::Logger;
use vane_wire::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::Parts;
use super::parts::caller;
use crate::audit::Change;

const SETTING: &str = "failed to set the log level";

/// The service.
#[derive(Debug, Clone)]
pub(super) struct LoggerService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl Logger for LoggerService {
    async fn get_logger(
        &self,
        _: Request<GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        Ok(Response::new(self.shown()))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = caller(&request)?;
        let level = asked(request.into_inner().new_level)?;
        let leaf = Change::LogLevelSet(level).leaf(&caller);
        self.0.append(leaf, SETTING).await?;
        self.done(self.0.log_level.set(level))
    }

    async fn reset_log_level(
        &self,
        request: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = caller(&request)?;
        let leaf = Change::LogLevelSet(self.0.log_level.launched()).leaf(&caller);
        self.0.append(leaf, SETTING).await?;
        self.done(self.0.log_level.reset())
    }
}

impl LoggerService {
    fn shown(&self) -> types::Logger {
        types::Logger {
            current_level: self.0.log_level.current().number(),
            launch_level: self.0.log_level.launched().number(),
        }
    }

    fn done(
        &self,
        changed: Result<(), vane_chassis::telemetry::TelemetryError>,
    ) -> Result<Response<types::Logger>, Status> {
        changed.map_err(|error| Refusal::because(Code::Internal, SETTING, error))?;
        Ok(Response::new(self.shown()))
    }
}

/// SPIRE's texts.
fn asked(number: i32) -> Result<LogLevel, Refusal> {
    LogLevel::from_number(number).ok_or_else(|| {
        let text = match number {
            0 => "newLevel value cannot be LogLevel_UNSPECIFIED",
            _ => "unsupported log level",
        };
        Refusal::new(Code::InvalidArgument, text)
    })
}

#[cfg(test)]
mod tests {
    use vane_wire::spire::api::server::logger::v1::logger_client::LoggerClient;

    use super::*;
    use crate::api::testing::{World, refused};

    fn levels(logger: &types::Logger) -> (i32, i32) {
        (logger.current_level, logger.launch_level)
    }

    #[tokio::test]
    async fn the_level_is_shown_set_and_reset() {
        let mut world = World::new().await;
        let mut client = LoggerClient::new(world.local().await);
        let shown = client.get_logger(GetLoggerRequest {}).await.unwrap();
        assert_eq!(levels(shown.get_ref()), (5, 5));
        for new_level in [7, 1] {
            let set = SetLogLevelRequest { new_level };
            let shown = client.set_log_level(set).await.unwrap();
            assert_eq!(levels(shown.get_ref()), (new_level, 5));
        }
        let reset = client.reset_log_level(ResetLogLevelRequest {}).await;
        assert_eq!(levels(reset.unwrap().get_ref()), (5, 5));
        let actions: Vec<_> = world.log().iter().map(|l| l["action"].clone()).collect();
        let set = |action: &&serde_json::Value| **action == "Logger/SetLogLevel";
        assert_eq!(actions.iter().filter(set).count(), 3, "{actions:?}");
    }

    #[tokio::test]
    async fn a_level_that_is_none_is_refused_with_spires_text() {
        let mut world = World::new().await;
        let mut client = LoggerClient::new(world.local().await);
        for (new_level, text) in [
            (0, "newLevel value cannot be LogLevel_UNSPECIFIED"),
            (8, "unsupported log level"),
            (-1, "unsupported log level"),
        ] {
            let answer = client.set_log_level(SetLogLevelRequest { new_level }).await;
            assert_eq!(refused(answer), (Code::InvalidArgument, text.to_owned()));
        }
    }

    #[tokio::test]
    async fn nobody_from_afar_may_touch_the_log() {
        let mut world = World::new().await;
        let admin = crate::api::testing::own().with_path("/admin").unwrap();
        let transport = crate::api::testing::tls_as(&admin, &world);
        let mut client = LoggerClient::new(world.over(transport).await);
        let answer = client.get_logger(GetLoggerRequest {}).await;
        assert_eq!(
            refused(answer).0,
            Code::Unimplemented,
            "as SPIRE's TCP port"
        );
    }
}
