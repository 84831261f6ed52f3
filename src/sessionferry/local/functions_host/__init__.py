"""A host for Azure Functions on one machine: runs an unmodified `function_app.py`.

It reads the app's bindings through their public JSON, receives with the real Service Bus client and
builds trigger values with the converters of azure-functions, as host and worker do in Azure.
"""

from sessionferry.local.functions_host.host import FunctionsHost
from sessionferry.local.functions_host.worker import FunctionTimedOut

__all__ = ["FunctionTimedOut", "FunctionsHost"]
