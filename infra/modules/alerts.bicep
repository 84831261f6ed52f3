param token string
param location string
param tags object
@description('Empty: alerts are shown in the portal only.')
param email string
param runbooksUrl string
param namespaceId string
param queueName string
param cosmosId string
param insightsId string

// What platforms measure by themselves. Each alert has the name of its runbook.
var metricAlerts = [
  {
    runbook: 'dead-letters'
    name: 'dead-letters'
    summary: 'Messages lie in the dead-letter queue: they are not stored.'
    severity: 1
    scope: namespaceId
    namespace: 'Microsoft.ServiceBus/namespaces'
    metric: 'DeadletteredMessages'
    aggregation: 'Maximum'
    threshold: 0
    dimension: 'EntityName'
    value: queueName
    window: 'PT5M'
  }
  {
    runbook: 'backlog'
    name: 'backlog'
    summary: 'More messages arrive than are taken in.'
    severity: 2
    scope: namespaceId
    namespace: 'Microsoft.ServiceBus/namespaces'
    metric: 'ActiveMessages'
    aggregation: 'Minimum'
    threshold: 5000
    dimension: 'EntityName'
    value: queueName
    window: 'PT30M'
  }
  {
    runbook: 'throttling'
    name: 'queue-throttling'
    summary: 'Service Bus refuses requests because there are too many.'
    severity: 2
    scope: namespaceId
    namespace: 'Microsoft.ServiceBus/namespaces'
    metric: 'ThrottledRequests'
    aggregation: 'Total'
    threshold: 100
    dimension: 'EntityName'
    value: queueName
    window: 'PT15M'
  }
  {
    runbook: 'throttling'
    name: 'store-throttling'
    summary: 'Cosmos DB refuses requests because there are too many.'
    severity: 2
    scope: cosmosId
    namespace: 'Microsoft.DocumentDB/databaseAccounts'
    metric: 'TotalRequests'
    aggregation: 'Count'
    threshold: 1000
    dimension: 'StatusCode'
    value: '429'
    window: 'PT15M'
  }
]

// What the function app says in its log; src/sessionferry/watching.py writes these lines.
var logAlerts = [
  {
    runbook: 'function-errors'
    name: 'function-errors'
    summary: 'Invocations fail; their messages come again.'
    severity: 2
    query: 'requests | where success == false | summarize found = count()'
    threshold: 5
    window: 'PT15M'
    frequency: 'PT5M'
  }
  {
    runbook: 'oldest-message'
    name: 'oldest-message'
    summary: 'The oldest message has waited for more than an hour.'
    severity: 2
    query: 'traces | where message startswith "queue watched: " | summarize arg_max(timestamp, message) | extend found = toint(extract("oldest_message_seconds=([0-9]+)", 1, message)) | project found'
    threshold: 3600
    window: 'PT15M'
    frequency: 'PT5M'
  }
  {
    runbook: 'ledger-out-of-balance'
    name: 'ledger-out-of-balance'
    summary: 'Lines that were sent, or that a session must have had, are neither stored nor quarantined.'
    severity: 1
    query: 'traces | where message startswith "store watched: " | summarize arg_max(timestamp, message) | extend found = toint(extract("unbalanced=([0-9]+)", 1, message)) | project found'
    threshold: 0
    window: 'PT2H'
    frequency: 'PT1H'
  }
  {
    runbook: 'silent-host'
    name: 'silent-host'
    summary: 'A machine that used to send has said nothing for days.'
    severity: 3
    query: 'traces | where message startswith "store watched: " | summarize arg_max(timestamp, message) | extend found = toint(extract("silent_hosts=([0-9]+)", 1, message)) | project found'
    threshold: 0
    window: 'PT2H'
    frequency: 'PT1H'
  }
]

resource group 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: 'ag-${token}'
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'sessionferry'
    emailReceivers: empty(email) ? [] : [{ name: 'operators', emailAddress: email, useCommonAlertSchema: true }]
  }
}

resource metrics 'Microsoft.Insights/metricAlerts@2018-03-01' = [for alert in metricAlerts: {
  name: '${alert.name}-${token}'
  location: 'global'
  tags: tags
  properties: {
    description: '${alert.summary} ${runbooksUrl}/${alert.runbook}.md'
    severity: alert.severity
    enabled: true
    autoMitigate: true
    scopes: [alert.scope]
    evaluationFrequency: 'PT5M'
    windowSize: alert.window
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          name: alert.name
          criterionType: 'StaticThresholdCriterion'
          metricNamespace: alert.namespace
          metricName: alert.metric
          operator: 'GreaterThan'
          threshold: alert.threshold
          timeAggregation: alert.aggregation
          // A metric that nothing has reported yet is not known to a new resource.
          skipMetricValidation: true
          dimensions: [
            {
              name: alert.dimension
              operator: 'Include'
              values: [alert.value]
            }
          ]
        }
      ]
    }
    actions: [{ actionGroupId: group.id }]
  }
}]

resource logs 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [for alert in logAlerts: {
  name: '${alert.name}-${token}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: alert.name
    description: '${alert.summary} ${runbooksUrl}/${alert.runbook}.md'
    severity: alert.severity
    enabled: true
    autoMitigate: true
    skipQueryValidation: true
    scopes: [insightsId]
    evaluationFrequency: alert.frequency
    windowSize: alert.window
    criteria: {
      allOf: [
        {
          query: alert.query
          timeAggregation: 'Maximum'
          metricMeasureColumn: 'found'
          operator: 'GreaterThan'
          threshold: alert.threshold
          failingPeriods: {
            numberOfEvaluationPeriods: 1
            minFailingPeriodsToAlert: 1
          }
        }
      ]
    }
    actions: { actionGroups: [group.id] }
  }
}]

// No line means that no function runs, or that a look fails each time.
var looks = [
  {
    name: 'unwatched'
    line: 'queue watched: '
    summary: 'The function app has not looked at its queue for half an hour.'
    window: 'PT30M'
    frequency: 'PT15M'
  }
  {
    name: 'store-unwatched'
    line: 'store watched: '
    summary: 'The function app has not looked at its store for three hours: silent machines and missing lines go unseen.'
    window: 'PT3H'
    frequency: 'PT1H'
  }
]

resource unwatched 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [for look in looks: {
  name: '${look.name}-${token}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: look.name
    description: '${look.summary} ${runbooksUrl}/unwatched.md'
    severity: 1
    enabled: true
    autoMitigate: true
    skipQueryValidation: true
    scopes: [insightsId]
    evaluationFrequency: look.frequency
    windowSize: look.window
    criteria: {
      allOf: [
        {
          query: 'traces | where message startswith "${look.line}"'
          timeAggregation: 'Count'
          operator: 'LessThan'
          threshold: 1
          failingPeriods: {
            numberOfEvaluationPeriods: 1
            minFailingPeriodsToAlert: 1
          }
        }
      ]
    }
    actions: { actionGroups: [group.id] }
  }
}]
