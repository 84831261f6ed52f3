param name string
param location string
param tags object
@allowed(['Standard', 'Premium'])
param sku string
param isPublic bool
param workspaceId string

// The same file defines the queue of the local stack.
var definition = loadJsonContent('../../src/sessionferry/queues.json')
var queueDefinition = definition.queues[0]

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: name
  location: location
  tags: tags
  sku: {
    name: sku
    tier: sku
  }
  properties: {
    disableLocalAuth: true
    minimumTlsVersion: '1.2'
    publicNetworkAccess: isPublic ? 'Enabled' : 'Disabled'
  }
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = {
  parent: namespace
  name: queueDefinition.name
  properties: {
    lockDuration: queueDefinition.lockDuration
    maxDeliveryCount: queueDefinition.maxDeliveryCount
    requiresDuplicateDetection: queueDefinition.requiresDuplicateDetection
    deadLetteringOnMessageExpiration: queueDefinition.deadLetteringOnMessageExpiration
    defaultMessageTimeToLive: queueDefinition.defaultMessageTimeToLive
    maxSizeInMegabytes: 5120
    requiresSession: false
  }
}

resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: namespace
  name: 'workspace'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'OperationalLogs'
        enabled: true
      }
    ]
  }
}

output id string = namespace.id
output name string = namespace.name
output host string = '${namespace.name}.servicebus.windows.net'
output queue string = queue.name
output queueId string = queue.id
