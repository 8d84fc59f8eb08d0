//! `spire.api.agent.logger.v1.Logger`: the level of this process's log, while it runs. For the
//! admin socket: whoever can open that may call it.

use tonic::{Code, Request, Response, Status};
use vane_chassis::telemetry::{Level, LogLevel, TelemetryError};
use vane_wire::spire::api::agent::logger::v1::logger_server::Logger;
use vane_wire::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

/// The service, of a log's level: that of the process is [`vane_chassis::telemetry::running`].
#[derive(Debug, Clone)]
pub(super) struct LoggerService(pub(super) Level);

#[tonic::async_trait]
impl Logger for LoggerService {
    async fn get_logger(
        &self,
        _: Request<GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        self.shown(Ok(()))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = asked(request.into_inner().new_level)?;
        tracing::info!(level = level.name(), "setting the log level");
        self.shown(self.0.set(level))
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let changed = self.0.reset();
        tracing::info!(level = self.0.launched().name(), "log level reset");
        self.shown(changed)
    }
}

impl LoggerService {
    fn shown(
        &self,
        changed: Result<(), TelemetryError>,
    ) -> Result<Response<types::Logger>, Status> {
        let tried = "failed to set the log level";
        changed.map_err(|error| Refusal::because(Code::Internal, tried, error))?;
        Ok(Response::new(types::Logger {
            current_level: self.0.current().number(),
            launch_level: self.0.launched().number(),
        }))
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
    use super::*;

    #[tokio::test]
    async fn the_level_is_shown_set_and_reset() {
        let service = LoggerService(Level::detached(LogLevel::Info));
        let levels = |answer: Result<Response<types::Logger>, Status>| {
            let logger = answer.unwrap().into_inner();
            (logger.current_level, logger.launch_level)
        };
        let set = SetLogLevelRequest { new_level: 6 };
        assert_eq!(
            levels(service.set_log_level(Request::new(set)).await),
            (6, 5)
        );
        let get = Request::new(GetLoggerRequest {});
        assert_eq!(levels(service.get_logger(get).await), (6, 5));
        let reset = Request::new(ResetLogLevelRequest {});
        assert_eq!(levels(service.reset_log_level(reset).await), (5, 5));
        let set = SetLogLevelRequest::default();
        let refused = service.set_log_level(Request::new(set)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
